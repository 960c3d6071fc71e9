//! A certificate authority for one test.

use rcgen::{
    BasicConstraints, CertificateParams, DnType, ExtendedKeyUsagePurpose, IsCa, Issuer, KeyPair,
    KeyUsagePurpose,
};

use crate::Result;

pub struct Authority {
    issuer: Issuer<'static, KeyPair>,
    pem: String,
}

pub struct Certificate {
    pub pem: String,
    pub key_pem: String,
}

impl Authority {
    pub fn new(name: &str) -> Result<Self> {
        Self::from(name, CertificateParams::new(Vec::<String>::new())?)
    }

    fn from(name: &str, mut params: CertificateParams) -> Result<Self> {
        params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
        params.distinguished_name.push(DnType::CommonName, name);
        params.key_usages = vec![KeyUsagePurpose::KeyCertSign, KeyUsagePurpose::CrlSign];
        let key = KeyPair::generate()?;
        let pem = params.self_signed(&key)?.pem();
        Ok(Self {
            issuer: Issuer::new(params, key),
            pem,
        })
    }

    pub fn pem(&self) -> String {
        self.pem.clone()
    }

    pub fn server(&self, names: &[&str]) -> Result<Certificate> {
        let names: Vec<String> = names.iter().map(|name| (*name).to_owned()).collect();
        self.signed(
            CertificateParams::new(names)?,
            "server",
            ExtendedKeyUsagePurpose::ServerAuth,
        )
    }

    pub fn client(&self, common_name: &str) -> Result<Certificate> {
        let params = CertificateParams::new(Vec::<String>::new())?;
        self.signed(params, common_name, ExtendedKeyUsagePurpose::ClientAuth)
    }

    fn signed(
        &self,
        mut params: CertificateParams,
        common_name: &str,
        usage: ExtendedKeyUsagePurpose,
    ) -> Result<Certificate> {
        params.distinguished_name = rcgen::DistinguishedName::new();
        params
            .distinguished_name
            .push(DnType::CommonName, common_name);
        params.extended_key_usages = vec![usage];
        let key = KeyPair::generate()?;
        let pem = params.signed_by(&key, &self.issuer)?.pem();
        Ok(Certificate {
            pem,
            key_pem: key.serialize_pem(),
        })
    }
}
