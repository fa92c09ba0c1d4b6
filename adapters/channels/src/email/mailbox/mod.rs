//! A mail server on loopback for development and tests: it takes every message, sends none on, and keeps the last ones
//! in memory to be looked at.

mod decode;
mod server;
mod store;

use std::sync::Arc;

use tokio::net::TcpListener;
use tokio_util::sync::CancellationToken;

pub use self::decode::{Decoded, decode};
pub use self::store::{Counts, MailStore, Page, StoreLimits, StoredMail};

/// The server.
pub struct Mailbox;

impl Mailbox {
    /// Serves SMTP on `listener` until `shutdown` is cancelled; then open sessions get 421 and are closed.
    ///
    /// Offered are PIPELINING, CHUNKING, 8BITMIME, SMTPUTF8, SIZE and ENHANCEDSTATUSCODES. There is no TLS and no AUTH:
    /// bind it to loopback. At most 256 sessions run at once; one more gets 421.
    ///
    /// # Errors
    /// When the listener fails.
    pub async fn serve(
        listener: TcpListener,
        store: Arc<MailStore>,
        shutdown: CancellationToken,
    ) -> std::io::Result<()> {
        server::serve(listener, store, shutdown).await
    }
}
