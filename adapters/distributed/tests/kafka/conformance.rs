//! The promises of the log's port.

use std::sync::{Arc, Mutex};

use herald_core::{conformance, ports::log::Log};

use crate::support::{clean_up, open};

#[tokio::test(flavor = "multi_thread")]
async fn the_log_keeps_its_promises() {
    let made = Mutex::new(Vec::new());
    conformance::log::all(|| async {
        let (log, config) = open().await;
        made.lock().unwrap().push(config);
        Arc::new(log) as Arc<dyn Log>
    })
    .await;
    let made = std::mem::take(&mut *made.lock().unwrap());
    for config in made {
        clean_up(&config).await;
    }
}
