//! The promises of the log's port, on both disks.

mod log_support;

use std::sync::{
    Arc,
    atomic::{AtomicU32, Ordering},
};

use herald_core::{conformance, ports::log::Log};
use herald_embedded::{
    disk::{MemoryDisk, RealDisk},
    log::LogOptions,
};
use log_support::{open, open_on, small};

#[tokio::test(start_paused = true)]
async fn in_memory() {
    for options in [LogOptions::default(), small()] {
        conformance::log::all(|| async {
            let log = open(&MemoryDisk::new(), options.clone()).unwrap();
            let flushed = log.clone();
            tokio::spawn(async move { flushed.flush_task().await });
            Arc::new(log) as Arc<dyn Log>
        })
        .await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn on_a_directory() {
    let directory = tempfile::tempdir().unwrap();
    let count = AtomicU32::new(0);
    for options in [LogOptions::default(), small()] {
        conformance::log::all(|| async {
            let path = directory.path().join(count.fetch_add(1, Ordering::Relaxed).to_string());
            let log = open_on(Arc::new(RealDisk::open(path).unwrap()), options.clone()).unwrap();
            log.spawn_flusher_thread().unwrap();
            Arc::new(log) as Arc<dyn Log>
        })
        .await;
    }
}
