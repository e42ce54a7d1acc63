//! What the controllers of a control plane do that the API's semantics need: namespaces, garbage.

use crate::core::Core;

impl Core {
    pub(crate) fn start_housekeeping(&self) {
        let catalog = self.registry.catalog();
        let namespaces = catalog.find("", "v1", "namespaces").expect("built in");
        for name in ["default", "kube-node-lease", "kube-public", "kube-system"] {
            let target = crate::route::Target {
                resource: std::sync::Arc::clone(namespaces),
                namespace: String::new(),
                name: None,
                subresource: None,
            };
            let body = crate::decode::Decoded {
                object: serde_json::json!({ "metadata": { "name": name } }),
                duplicates: Vec::new(),
            };
            let options = crate::write::WriteOptions::internal();
            self.create(&target, body, &options)
                .expect("the name is free and valid");
        }
    }
}
