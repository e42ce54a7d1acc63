//! What a runtime writes to the plugin's standard input, and the result of the plugin before it: read or refused, and
//! what was read is written and read again without a change.

#![no_main]

use libfuzzer_sys::{Corpus, fuzz_target};
use weft_cni::spec::{AddResult, NetConf, Version};

fuzz_target!(|data: &[u8]| -> Corpus {
    let Ok(conf) = NetConf::from_json(data) else {
        return Corpus::Keep;
    };
    assert!(conf.socket.is_absolute(), "{:?}", conf.socket);
    assert!(conf.intent_dir.is_absolute(), "{:?}", conf.intent_dir);
    let Ok(Some(previous)) = conf.prev_result() else {
        return Corpus::Keep;
    };
    for version in Version::ALL {
        // Some versions can't say everything.
        let Ok(json) = previous.to_json(version) else {
            continue;
        };
        let again = AddResult::from_json(json.clone(), version)
            .unwrap_or_else(|error| panic!("{version}: {json} can't be read: {error}"));
        let rewritten = again
            .to_json(version)
            .unwrap_or_else(|error| panic!("{version}: {json} can't be written again: {error}"));
        assert_eq!(rewritten, json, "{version}");
    }
    Corpus::Keep
});
