//! TLS for both servers: rustls with the ring provider. It always verifies the certificate chain and the host name.

use std::{
    path::{Path, PathBuf},
    sync::Arc,
};

use rustls::{ClientConfig, RootCertStore};
use rustls_pki_types::{CertificateDer, PrivateKeyDer, pem::PemObject};

use crate::file::{self, Guard};

#[derive(Debug, thiserror::Error)]
pub enum TlsError {
    #[error("cannot read {}: {why}", path.display())]
    File { path: PathBuf, why: String },
    #[error("{0}")]
    Unreadable(String),
    #[error("no trusted root certificate was found on this system: set ca_file")]
    NoRoots,
    #[error("the certificate and key do not work together: {0}")]
    Identity(rustls::Error),
    #[error("rustls: {0}")]
    Setup(rustls::Error),
}

/// Reads the files at every call, so that the next connect uses a renewed certificate.
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
        Some((cert, key)) => builder
            .with_client_auth_cert(certificates(cert)?, private_key(key)?)
            .map_err(TlsError::Identity)?,
    };
    Ok(Arc::new(config))
}

/// A connector for sessions without TLS: it does not read the system's roots.
pub fn no_postgres_tls() -> Result<tokio_postgres_rustls::MakeRustlsConnect, TlsError> {
    let config =
        ClientConfig::builder_with_provider(Arc::new(rustls::crypto::ring::default_provider()))
            .with_safe_default_protocol_versions()
            .map_err(TlsError::Setup)?
            .with_root_certificates(RootCertStore::empty())
            .with_no_client_auth();
    Ok(tokio_postgres_rustls::MakeRustlsConnect::new(config))
}

pub fn postgres_tls(
    ca_file: Option<&Path>,
    identity: Option<(&Path, &Path)>,
) -> Result<tokio_postgres_rustls::MakeRustlsConnect, TlsError> {
    let config = Arc::unwrap_or_clone(client_config(ca_file, identity)?);
    Ok(tokio_postgres_rustls::MakeRustlsConnect::new(config))
}

/// Checks that the certificates are readable, and that not all are expired.
pub fn check_authorities(path: &Path) -> Result<(), TlsError> {
    roots(Some(path))?;
    let states = certificates(path)?
        .iter()
        .map(|c| expiry(path, c))
        .collect::<Vec<_>>();
    match states
        .into_iter()
        .reduce(|a, b| if a.is_ok() { a } else { b })
    {
        Some(state) => state,
        None => Ok(()),
    }
}

/// Checks that certificate and key are readable, belong together, and that the certificate is valid now.
pub fn check_identity(cert: &Path, key: &Path) -> Result<(), TlsError> {
    let chain = certificates(cert)?;
    if let Some(leaf) = chain.first() {
        expiry(cert, leaf)?;
    }
    let provider = rustls::crypto::ring::default_provider();
    rustls::sign::CertifiedKey::from_der(chain, private_key(key)?, &provider)
        .map_err(TlsError::Identity)?;
    Ok(())
}

fn expiry(path: &Path, certificate: &CertificateDer<'_>) -> Result<(), TlsError> {
    let file = |why: String| TlsError::File {
        path: path.to_owned(),
        why,
    };
    let (_, parsed) = x509_parser::parse_x509_certificate(certificate)
        .map_err(|_| file("it contains something that is not an X.509 certificate".to_owned()))?;
    let validity = parsed.validity();
    let now = x509_parser::time::ASN1Time::now();
    if validity.not_after < now {
        return Err(file(format!(
            "the certificate expired on {}",
            validity.not_after
        )));
    }
    if validity.not_before > now {
        return Err(file(format!(
            "the certificate is not valid before {}",
            validity.not_before
        )));
    }
    Ok(())
}

/// The end of a certificate's validity, in seconds since 1970; `None` if it is not an X.509 certificate.
pub fn ends_at(certificate: &CertificateDer<'_>) -> Option<i64> {
    let (_, parsed) = x509_parser::parse_x509_certificate(certificate).ok()?;
    Some(parsed.validity().not_after.timestamp())
}

fn private_key(path: &Path) -> Result<PrivateKeyDer<'static>, TlsError> {
    PrivateKeyDer::from_pem_slice(&bytes(path)?).map_err(|e| TlsError::File {
        path: path.to_owned(),
        why: e.to_string(),
    })
}

fn roots(ca_file: Option<&Path>) -> Result<RootCertStore, TlsError> {
    let mut store = RootCertStore::empty();
    match ca_file {
        Some(path) => {
            for certificate in certificates(path)? {
                store.add(certificate).map_err(|e| TlsError::File {
                    path: path.to_owned(),
                    why: e.to_string(),
                })?;
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
    let file = |why: String| TlsError::File {
        path: path.to_owned(),
        why,
    };
    let certificates = CertificateDer::pem_slice_iter(&bytes(path)?)
        .collect::<Result<Vec<_>, _>>()
        .map_err(|e| file(e.to_string()))?;
    if certificates.is_empty() {
        return Err(file("it contains no PEM certificate".to_owned()));
    }
    Ok(certificates)
}

/// A guard applies, because a person who can change a certificate authority decides which servers the relay trusts.
fn bytes(path: &Path) -> Result<Vec<u8>, TlsError> {
    file::read(path, file::MOST, Guard::Trusted).map_err(TlsError::Unreadable)
}
