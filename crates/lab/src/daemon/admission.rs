//! What the API of a lab refuses beyond its schemas. A real API server evaluates the definitions' CEL rules; here the
//! parser that Weft itself reads pools with stands in for them. The two agree, in the same words: kubetest asks both.

use serde_json::Value;
use weft_api::PodPoolSpec;
use weft_model::UserError;

/// The field and what is wrong with it, for an object that can never work.
pub(super) fn judge(kind: &str, object: &Value) -> Option<(String, String)> {
    if kind != "PodPool" {
        return None;
    }
    // What is no PodPool at all the schema refuses.
    let spec: PodPoolSpec = serde_json::from_value(object["spec"].clone()).ok()?;
    let error = UserError::from(spec.ranges().err()?);
    let (field, said) = error.message().split_once(": ")?;
    Some((field.to_owned(), said.to_owned()))
}

#[cfg(test)]
mod tests {
    use super::*;
    use kube::api::PostParams;
    use kube::{Api, Client, Config};
    use serde_json::json;
    use weft_api::PodPool;
    use weft_apilite::ApiServer;

    #[tokio::test]
    async fn a_pool_that_can_never_work_is_refused_in_the_words_of_its_parser() {
        let server = ApiServer::builder().admission(judge).start().unwrap();
        let listener = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
        let address = server.serve(listener).unwrap();
        let client = Client::try_from(Config::new(format!("http://{address}").parse().unwrap())).unwrap();
        let definitions = Api::all(client.clone());
        for definition in weft_api::crds() {
            definitions
                .create(&PostParams::default(), &definition)
                .await
                .unwrap();
        }
        let pools: Api<PodPool> = Api::all(client);
        let create = async |name: &str, spec: Value| {
            let pool = PodPool::new(name, serde_json::from_value(spec).unwrap());
            pools.create(&PostParams::default(), &pool).await
        };
        for (spec, said) in [
            (
                json!({"cidrs": ["010.244.0.0/16"]}),
                "spec.cidrs[0]: Invalid value: ",
            ),
            (
                json!({"cidrs": ["10.244.0.0/16", "10.244.8.0/24"]}),
                "spec.cidrs: Invalid value: 10.244.0.0/16 overlaps 10.244.8.0/24",
            ),
            (
                json!({"cidrs": ["10.244.0.0/24"], "blockSize": 22}),
                "spec.blockSize: Invalid value: a block of /22 is larger than 10.244.0.0/24",
            ),
        ] {
            let refused = create("bad", spec.clone()).await.unwrap_err();
            let kube::Error::Api(status) = refused else {
                panic!("{refused}");
            };
            assert_eq!(status.code, 422, "{spec}");
            assert!(status.message.contains(said), "{spec}: {}", status.message);
        }
        create("good", json!({"cidrs": ["10.244.0.0/16"]})).await.unwrap();
    }
}
