//! Certificates and kubeconfigs of a cluster.

use std::fs;
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result};
use k8s_openapi::ByteString;
use rcgen::{
    BasicConstraints, CertificateParams, DnType, ExtendedKeyUsagePurpose, IsCa, Issuer, KeyPair,
    KeyUsagePurpose,
};
use serde_json::json;

/// A cluster's certificate authorities and what they signed, in one directory.
#[derive(Clone, Debug)]
pub struct Pki {
    dir: PathBuf,
}

/// Who a client certificate speaks for: user (common name) and group (organisation), as Kubernetes reads them.
#[derive(Clone, Copy, Debug)]
pub struct Subject<'a> {
    /// The user.
    pub name: &'a str,
    /// Its group, if any.
    pub group: Option<&'a str>,
}

/// Authority of servers and clients.
const CA: &str = "ca";

/// Authority of the API server as a proxy to aggregated API servers.
const FRONT_PROXY_CA: &str = "front-proxy-ca";

// === impl Pki ===

impl Pki {
    /// Makes the authorities and the key of service account tokens.
    ///
    /// # Errors
    /// The directory can't be written.
    pub fn create(dir: &Path) -> Result<Self> {
        fs::create_dir_all(dir).with_context(|| format!("create {}", dir.display()))?;
        let pki = Self { dir: dir.to_owned() };
        for name in [CA, FRONT_PROXY_CA] {
            let key = KeyPair::generate()?;
            let certificate = authority(name)?.self_signed(&key)?;
            write_private(&pki.path(name, "key"), &key.serialize_pem())?;
            write_private(&pki.path(name, "crt"), &certificate.pem())?;
        }
        let tokens = KeyPair::generate()?;
        write_private(&pki.path("sa", "key"), &tokens.serialize_pem())?;
        write_private(&pki.path("sa", "pub"), &tokens.public_key_pem())?;
        Ok(pki)
    }

    /// What [`create`](Self::create) made there.
    pub fn open(dir: &Path) -> Self {
        Self { dir: dir.to_owned() }
    }

    /// Path of a file such as `("ca", "crt")`.
    pub fn path(&self, name: &str, kind: &str) -> PathBuf {
        self.dir.join(format!("{name}.{kind}"))
    }

    /// Signs a certificate for servers and clients, by the front proxy's authority if its name begins with that.
    ///
    /// # Errors
    /// The authority is not there, or the directory can't be written.
    pub fn sign(&self, file: &str, subject: Subject<'_>, names: &[String]) -> Result<()> {
        let signer = if file.starts_with("front-proxy") {
            FRONT_PROXY_CA
        } else {
            CA
        };
        let path = self.path(signer, "key");
        let text = fs::read_to_string(&path).with_context(|| format!("read {}", path.display()))?;
        let issuer = Issuer::new(authority(signer)?, KeyPair::from_pem(&text)?);

        let mut params = CertificateParams::new(names)?;
        params.distinguished_name.remove(DnType::CommonName);
        params.distinguished_name.push(DnType::CommonName, subject.name);
        if let Some(group) = subject.group {
            params.distinguished_name.push(DnType::OrganizationName, group);
        }
        params.key_usages = vec![
            KeyUsagePurpose::DigitalSignature,
            KeyUsagePurpose::KeyEncipherment,
        ];
        params.extended_key_usages = vec![
            ExtendedKeyUsagePurpose::ServerAuth,
            ExtendedKeyUsagePurpose::ClientAuth,
        ];
        let key = KeyPair::generate()?;
        let certificate = params.signed_by(&key, &issuer)?;
        write_private(&self.path(file, "key"), &key.serialize_pem())?;
        write_private(&self.path(file, "crt"), &certificate.pem())
    }

    /// Writes a kubeconfig with a signed certificate inside, so that it works wherever it is copied to.
    ///
    /// # Errors
    /// The certificate is not there, or the file can't be written.
    pub fn kubeconfig(&self, signed: &str, server: &str, context: &str, to: &Path) -> Result<()> {
        let inline = |name: &str, kind: &str| -> Result<ByteString> {
            let path = self.path(name, kind);
            let data = fs::read(&path).with_context(|| format!("read {}", path.display()))?;
            Ok(ByteString(data))
        };
        let config = json!({
            "apiVersion": "v1",
            "kind": "Config",
            "clusters": [{"name": context, "cluster": {
                "server": server,
                "certificate-authority-data": inline(CA, "crt")?,
            }}],
            "users": [{"name": signed, "user": {
                "client-certificate-data": inline(signed, "crt")?,
                "client-key-data": inline(signed, "key")?,
            }}],
            "contexts": [{"name": context, "context": {"cluster": context, "user": signed}}],
            "current-context": context,
        });
        write_private(to, &format!("{config:#}\n"))
    }
}

/// The same for the same name: with its key it signs as the one whose certificate was written.
fn authority(name: &str) -> Result<CertificateParams> {
    let mut params = CertificateParams::new(Vec::new())?;
    params.distinguished_name.remove(DnType::CommonName);
    params.distinguished_name.push(DnType::CommonName, name);
    params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
    params.key_usages = vec![KeyUsagePurpose::KeyCertSign, KeyUsagePurpose::DigitalSignature];
    Ok(params)
}

fn write_private(path: &Path, text: &str) -> Result<()> {
    use std::io::Write;
    fs::OpenOptions::new()
        .create(true)
        .truncate(true)
        .write(true)
        .mode(0o600)
        .open(path)
        .and_then(|mut file| file.write_all(text.as_bytes()))
        .with_context(|| format!("write {}", path.display()))
}
