//! TLS as a server speaks it.

/// What a server shows to those who connect with TLS.
#[derive(Debug, Clone)]
pub struct ServerTls {
    pub certificate_pem: String,
    pub key_pem: String,
    /// Client certificates are asked for, and must come from here.
    pub client_ca_pem: Option<String>,
}
