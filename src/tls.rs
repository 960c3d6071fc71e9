//! TLS for both servers: rustls with the ring provider; the certificate chain and the host name are always verified.

use std::{
    path::{Path, PathBuf},
    sync::Arc,
};

use rustls::{ClientConfig, RootCertStore};
use rustls_pki_types::{CertificateDer, PrivateKeyDer, pem::PemObject};

use crate::config::Database;

#[derive(Debug, thiserror::Error)]
pub enum TlsError {
    #[error("cannot read {}: {why}", path.display())]
    File { path: PathBuf, why: String },
    #[error("no trusted root certificate was found on this system: set ca_file")]
    NoRoots,
    #[error("the certificate and key do not work together: {0}")]
    Identity(rustls::Error),
    #[error("rustls: {0}")]
    Setup(rustls::Error),
}

/// Files are read at every call, so that a renewed certificate is used from the next connect on.
pub fn client_config(
    ca_file: Option<&Path>,
    identity: Option<(&Path, &Path)>,
) -> Result<Arc<ClientConfig>, TlsError> {
    let provider = Arc::new(rustls::crypto::ring::default_provider());
    let builder = ClientConfig::builder_with_provider(provider)
        .with_safe_default_protocol_versions()
        .map_err(TlsError::Setup)?
        .with_root_certificates(roots(ca_file)?);
    let config = match identity {
        None => builder.with_no_client_auth(),
        Some((cert, key)) => {
            let key_der = PrivateKeyDer::from_pem_file(key)
                .map_err(|e| TlsError::File { path: key.to_owned(), why: e.to_string() })?;
            builder.with_client_auth_cert(certificates(cert)?, key_der).map_err(TlsError::Identity)?
        }
    };
    Ok(Arc::new(config))
}

/// For `sslmode=disable` the connector is never asked, so it need not read the system's roots.
pub fn postgres_connector(database: &Database) -> Result<tokio_postgres_rustls::MakeRustlsConnect, TlsError> {
    let plaintext = database
        .current()
        .is_ok_and(|config| config.get_ssl_mode() == tokio_postgres::config::SslMode::Disable);
    let config = if plaintext {
        ClientConfig::builder_with_provider(Arc::new(rustls::crypto::ring::default_provider()))
            .with_safe_default_protocol_versions()
            .map_err(TlsError::Setup)?
            .with_root_certificates(RootCertStore::empty())
            .with_no_client_auth()
    } else {
        let identity = database.cert_file.as_deref().zip(database.key_file.as_deref());
        Arc::unwrap_or_clone(client_config(database.ca_file.as_deref(), identity)?)
    };
    Ok(tokio_postgres_rustls::MakeRustlsConnect::new(config))
}

fn roots(ca_file: Option<&Path>) -> Result<RootCertStore, TlsError> {
    let mut store = RootCertStore::empty();
    match ca_file {
        Some(path) => {
            for certificate in certificates(path)? {
                store
                    .add(certificate)
                    .map_err(|e| TlsError::File { path: path.to_owned(), why: e.to_string() })?;
            }
        }
        None => {
            store.add_parsable_certificates(rustls_native_certs::load_native_certs().certs);
        }
    }
    if store.is_empty() {
        return Err(TlsError::NoRoots);
    }
    Ok(store)
}

fn certificates(path: &Path) -> Result<Vec<CertificateDer<'static>>, TlsError> {
    let file = |why: String| TlsError::File { path: path.to_owned(), why };
    let certificates = CertificateDer::pem_file_iter(path)
        .and_then(|found| found.collect::<Result<Vec<_>, _>>())
        .map_err(|e| file(e.to_string()))?;
    if certificates.is_empty() {
        return Err(file("it holds no PEM certificate".to_owned()));
    }
    Ok(certificates)
}
