//! Counts of a nextest report.
//!
//! The Rust test harness knows no "skipped at run time": a test that finds its means missing can only pass. So that
//! this never goes unseen, such a test prints a line `skipped: <reason>` and returns, and the report is read for it.

use crate::test::{Skip, Tally};

/// What a test prints, alone on a line, when it can't run here.
const MARK: &str = "skipped: ";

/// Reads a JUnit report as nextest writes it.
pub(crate) fn tally(report: &str) -> Tally {
    let mut tally = Tally::default();
    for case in report.split("<testcase ").skip(1) {
        let case = case.split("</testcase>").next().unwrap_or(case);
        // Reruns that led to success are `flakyFailure`; what failed in the end is one of these.
        if case.contains("<failure") || case.contains("<error") {
            tally.failed += 1;
        } else if let Some(reason) = case.lines().find_map(reason) {
            let name = unescape(attribute(case, "name").unwrap_or("a test"));
            tally.skipped.push(Skip {
                count: 1,
                name,
                reason,
            });
        } else {
            tally.passed += 1;
        }
    }
    tally
}

fn reason(line: &str) -> Option<String> {
    let text = line.rsplit('>').next().unwrap_or(line);
    Some(unescape(
        text.trim_start()
            .strip_prefix(MARK)?
            .split('<')
            .next()?
            .trim_end(),
    ))
}

fn attribute<'a>(tag: &'a str, name: &str) -> Option<&'a str> {
    tag.split_once(&format!("{name}=\""))?.1.split('"').next()
}

fn unescape(text: &str) -> String {
    text.replace("&lt;", "<")
        .replace("&gt;", ">")
        .replace("&quot;", "\"")
        .replace("&apos;", "'")
        .replace("&amp;", "&")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn passes_failures_and_visible_skips_are_told_apart() {
        let report = r#"<?xml version="1.0" encoding="UTF-8"?>
<testsuites name="nextest-run" tests="3" failures="1" errors="0" time="0.1">
    <testsuite name="weft-kernel::net" tests="3" disabled="0" errors="0" failures="1">
        <testcase name="a_veth_pair_carries_packets" classname="weft-kernel::net" time="0.04">
            <system-out>
running 1 test
test a_veth_pair_carries_packets ... ok
</system-out>
        </testcase>
        <testcase name="a_foreign_rule_set_survives" classname="weft-kernel::net" time="0.00">
            <system-out>running 1 test
skipped: no `nft` in PATH &amp; none is needed
test a_foreign_rule_set_survives ... ok
</system-out>
        </testcase>
        <testcase name="a_route_is_replaced" classname="weft-kernel::net" time="0.01">
            <failure type="test failure with exit code 101">thread panicked</failure>
        </testcase>
    </testsuite>
</testsuites>
"#;
        let skip = Skip {
            count: 1,
            name: "a_foreign_rule_set_survives".into(),
            reason: "no `nft` in PATH & none is needed".into(),
        };
        assert_eq!(
            tally(report),
            Tally {
                passed: 1,
                failed: 1,
                skipped: vec![skip]
            }
        );
    }

    #[test]
    fn a_test_that_succeeded_on_a_second_try_passed() {
        let report = r#"<testcase name="x" classname="y" time="0.0"><flakyFailure type="t">boom</flakyFailure></testcase>"#;
        assert_eq!(
            tally(report),
            Tally {
                passed: 1,
                failed: 0,
                skipped: vec![]
            }
        );
    }

    #[test]
    fn an_empty_report_counts_nothing() {
        assert_eq!(
            tally("<testsuites name=\"nextest-run\" tests=\"0\"/>"),
            Tally::default()
        );
    }
}
