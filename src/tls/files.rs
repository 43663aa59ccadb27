//! The operator's pairs, and which of their renewals are taken over.

use std::fmt;
use std::path::PathBuf;
use std::time::SystemTime;

use super::{Certificates, Pair, Standing, TlsError};
use crate::telemetry::chain;

/// Where one pair lies.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct PairFiles {
    /// The chain in PEM form, leaf first.
    pub cert: PathBuf,
    /// Its private key.
    pub key: PathBuf,
}

impl PairFiles {
    /// As [`Pair::load`].
    ///
    /// # Errors
    /// As [`Pair::load`].
    pub fn load(&self) -> Result<Pair, TlsError> {
        Pair::load(&self.cert, &self.key)
    }
}

/// Pairs that somebody else renews.
///
/// Invariant: the certificates in use are as many as the files, in their order. Clones share those in use.
#[derive(Clone, Debug)]
pub struct OwnFiles {
    files: Vec<PairFiles>,
    /// What clients call us. A renewal that is no longer for one of them is a mistake.
    domains: Vec<String>,
    certificates: Certificates,
}

impl OwnFiles {
    /// Loads every pair, the first to be shown to clients that name no host. The certificates in use remain as
    /// they are until they are replaced by these.
    ///
    /// # Errors
    /// What is wrong with each pair that cannot be used. One outside its dates is no error.
    pub fn load(
        certificates: &Certificates,
        files: &[PairFiles],
        domains: &[String],
    ) -> Result<(Self, Vec<Pair>), Vec<TlsError>> {
        let mut pairs = Vec::new();
        let mut faults = Vec::new();
        for files in files {
            match files.load() {
                Ok(pair) => pairs.push(pair),
                Err(error) => faults.push(error),
            }
        }
        if !faults.is_empty() {
            return Err(faults);
        }
        let own = Self {
            files: files.to_vec(),
            domains: domains.to_vec(),
            certificates: certificates.clone(),
        };
        Ok((own, pairs))
    }

    /// Those of our domains that no certificate in use is for.
    pub fn uncovered(&self) -> Vec<&str> {
        let pairs = self.certificates.pairs();
        let covered = |domain: &str| pairs.iter().any(|pair| pair.covers(domain));
        let domains = self.domains.iter().map(String::as_str);
        domains.filter(|domain| !covered(domain)).collect()
    }

    /// Every file.
    pub fn paths(&self) -> Vec<PathBuf> {
        let each = self.files.iter();
        each.flat_map(|files| [files.cert.clone(), files.key.clone()])
            .collect()
    }

    /// Reads every pair again and puts the renewed ones in use, all at once; tells whether there were any.
    /// A pair stays as it is where its files cannot be used, where clients would refuse the new one as far
    /// as the clock tells or because the certificate of its issuer is gone from the file, and where one of our
    /// domains would be without a certificate.
    ///
    /// # Errors
    /// Why which pairs stayed; others may have been renewed all the same.
    pub fn renew(&self, now: SystemTime) -> Result<bool, RenewalError> {
        let old = self.certificates.pairs();
        let mut faults = Vec::new();
        let mut new: Vec<Pair> = Vec::with_capacity(old.len());
        for (files, old) in self.files.iter().zip(old.iter()) {
            new.push(match renewed(files, old, now) {
                Ok(pair) => pair,
                Err(fault) => {
                    faults.push(fault);
                    old.clone()
                }
            });
        }
        for domain in &self.domains {
            if new.iter().any(|pair| pair.covers(domain)) {
                continue;
            }
            // Whoever had the name keeps the pair that has it.
            for ((new, old), files) in new.iter_mut().zip(old.iter()).zip(&self.files) {
                if old.covers(domain) {
                    *new = old.clone();
                    faults.push(Fault::Name {
                        cert: files.cert.clone(),
                        domain: domain.clone(),
                    });
                }
            }
        }
        let changed = new.iter().zip(old.iter()).any(|(new, old)| new != old);
        if changed {
            self.certificates.replace(new);
        }
        if faults.is_empty() {
            Ok(changed)
        } else {
            Err(RenewalError(faults))
        }
    }
}

fn renewed(files: &PairFiles, old: &Pair, now: SystemTime) -> Result<Pair, Fault> {
    let new = files.load().map_err(Fault::Files)?;
    let standing = new.standing(now);
    // Where the one in use is refused as well, the clock may be what is wrong.
    if new == *old || old.standing(now).is_refused() {
        return Ok(new);
    }
    let cert = files.cert.clone();
    if standing.is_refused() {
        return Err(Fault::Dates { cert, standing });
    }
    // The leaf alone was put where the chain belongs, or the rest of it is still to be written.
    if old.has_issuer() && !new.has_issuer() {
        return Err(Fault::Chain { cert });
    }
    Ok(new)
}

/// Why a renewal was not taken over, for each pair that stayed.
#[derive(Debug)]
pub struct RenewalError(Vec<Fault>);

#[derive(Debug)]
enum Fault {
    /// The files are no pair.
    Files(TlsError),
    /// The new certificate has ended or not begun.
    Dates { cert: PathBuf, standing: Standing },
    /// The certificate of its issuer does not follow the new one, as it did before.
    Chain { cert: PathBuf },
    /// The new certificate is no longer for one of our domains.
    Name { cert: PathBuf, domain: String },
}

impl fmt::Display for Fault {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Files(error) => f.write_str(&chain(error)),
            Self::Dates { cert, standing } => {
                write!(f, "the certificate in {} {standing}", cert.display())
            }
            Self::Chain { cert } => write!(
                f,
                "{} has no certificate of its issuer any more, without which clients cannot verify it; if \
                 theirs is enough, restart the proxy",
                cert.display()
            ),
            Self::Name { cert, domain } => {
                write!(
                    f,
                    "the certificate in {} is not for {domain}",
                    cert.display()
                )
            }
        }
    }
}

impl fmt::Display for RenewalError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for (index, fault) in self.0.iter().enumerate() {
            let separator = if index == 0 { "" } else { "; " };
            write!(f, "{separator}{fault}")?;
        }
        Ok(())
    }
}

impl std::error::Error for RenewalError {}

#[cfg(test)]
mod tests {
    use std::fs;
    use std::time::Duration;

    use rcgen::{BasicConstraints, CertificateParams, DnType, IsCa, Issuer, KeyPair};

    use super::super::pair::tests::{at_day, pem_pair_between};
    use super::*;

    /// A day on which the pairs of these tests are valid.
    const TODAY: i64 = 20_000;

    struct Scene {
        folder: tempfile::TempDir,
        own: OwnFiles,
    }

    impl Scene {
        /// A pair for each list of names.
        fn of(pairs: &[&[&str]], domains: &[&str]) -> Self {
            let folder = tempfile::tempdir().expect("folder");
            let mut files = Vec::new();
            for (index, names) in pairs.iter().enumerate() {
                files.push(PairFiles {
                    cert: folder.path().join(format!("{index}.crt")),
                    key: folder.path().join(format!("{index}.key")),
                });
                write(&files[index], names, TODAY - 10, TODAY + 10);
            }
            let domains: Vec<String> = domains.iter().map(|name| (*name).to_owned()).collect();
            let certificates = Certificates::new(Vec::new());
            let (own, pairs) = OwnFiles::load(&certificates, &files, &domains).expect("pairs");
            assert!(certificates.pairs().is_empty(), "they are replaced later");
            certificates.replace(pairs);
            Self { folder, own }
        }

        fn write(&self, index: usize, names: &[&str], from: i64, until: i64) {
            write(&self.own.files[index], names, from, until);
        }

        fn renew(&self) -> Result<bool, String> {
            let renewed = self.own.renew(at_day(TODAY));
            let folder = format!("{}/", self.folder.path().display());
            renewed.map_err(|error| error.to_string().replace(&folder, ""))
        }

        /// The names of what is in use.
        fn names(&self) -> Vec<String> {
            let pairs = self.own.certificates.pairs();
            pairs.iter().map(|pair| pair.names().join(" ")).collect()
        }
    }

    fn write(files: &PairFiles, names: &[&str], from: i64, until: i64) {
        let (cert, key) = pem_pair_between(names, at_day(from), at_day(until));
        fs::write(&files.cert, cert).expect("file");
        fs::write(&files.key, key).expect("file");
    }

    #[test]
    fn every_pair_that_cannot_be_used_is_told() {
        let files = ["a", "b"].map(|name| PairFiles {
            cert: format!("/nonexistent/{name}.crt").into(),
            key: format!("/nonexistent/{name}.key").into(),
        });
        let certificates = Certificates::new(Vec::new());
        let faults = OwnFiles::load(&certificates, &files, &[]).expect_err("no such files");
        let told: Vec<String> = faults.iter().map(ToString::to_string).collect();
        assert_eq!(
            told,
            [
                "cannot read /nonexistent/a.crt",
                "cannot read /nonexistent/b.crt"
            ]
        );
    }

    #[test]
    fn what_is_the_same_changes_nothing_and_what_is_new_is_taken() {
        let scene = Scene::of(&[&["a.test"], &["b.test"]], &["a.test", "b.test"]);
        assert_eq!(scene.renew(), Ok(false));
        let before = scene.own.certificates.pairs();
        scene.write(1, &["b.test", "c.test"], TODAY - 1, TODAY + 90);
        assert_eq!(scene.renew(), Ok(true));
        assert_eq!(scene.names(), ["a.test", "b.test c.test"]);
        assert_eq!(scene.own.certificates.pairs()[0], before[0]);
        assert_eq!(scene.renew(), Ok(false));
    }

    #[test]
    fn k02_a_bad_renewal_of_one_pair_keeps_it_and_not_the_others_back() {
        let scene = Scene::of(&[&["a.test"], &["b.test"]], &["a.test"]);
        let other_key = fs::read(&scene.own.files[1].key).expect("file");
        fs::write(&scene.own.files[0].key, other_key).expect("file");
        scene.write(1, &["c.test"], TODAY - 1, TODAY + 90);
        assert_eq!(
            scene.renew(),
            Err("the key in 0.key does not belong to the certificate in 0.crt".to_owned())
        );
        assert_eq!(scene.names(), ["a.test", "c.test"]);
    }

    #[test]
    fn k02_a_renewal_that_clients_would_refuse_is_not_taken() {
        let scene = Scene::of(&[&["a.test"]], &[]);
        let before = scene.own.certificates.pairs();
        for (from, until, complaint) in [
            (TODAY - 20, TODAY - 1, "ended"),
            (TODAY + 1, TODAY + 20, "is valid only from"),
        ] {
            scene.write(0, &["a.test"], from, until);
            let told = scene.renew().expect_err("refused");
            assert!(told.contains(complaint), "{told}");
            assert_eq!(scene.own.certificates.pairs(), before);
        }
    }

    #[test]
    fn k02_a_chain_that_lost_its_issuer_is_not_taken() {
        let scene = Scene::of(&[&["a.test"]], &[]);
        let chained = |issuer: &str| {
            let ca_key = KeyPair::generate().expect("a key");
            let mut ca = CertificateParams::default();
            ca.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
            ca.distinguished_name.push(DnType::CommonName, issuer);
            let issuer_pem = ca.self_signed(&ca_key).expect("a CA").pem();
            let key = KeyPair::generate().expect("a key");
            let mut leaf = CertificateParams::new(["a.test".to_owned()]).expect("names");
            leaf.not_before = at_day(TODAY - 10).into();
            leaf.not_after = at_day(TODAY + 10).into();
            let leaf = leaf
                .signed_by(&key, &Issuer::new(ca, ca_key))
                .expect("a leaf");
            (leaf.pem(), issuer_pem, key.serialize_pem())
        };
        let put = |chain: &[&str], key: &str| {
            fs::write(&scene.own.files[0].cert, chain.concat()).expect("file");
            fs::write(&scene.own.files[0].key, key).expect("file");
        };
        let (leaf, issuer, key) = chained("one");
        put(&[&leaf], &key);
        assert_eq!(scene.renew(), Ok(true), "there was none before");
        put(&[&leaf, &issuer], &key);
        assert_eq!(scene.renew(), Ok(true));

        let in_use = scene.own.certificates.pairs();
        let (leaf, issuer, key) = chained("two");
        let (_, stranger, _) = chained("three");
        for chain in [&[leaf.as_str()] as &[&str], &[&leaf, &stranger]] {
            put(chain, &key);
            let told = scene.renew().expect_err("clients could not verify it");
            assert!(told.contains("no certificate of its issuer"), "{told}");
            assert_eq!(scene.own.certificates.pairs(), in_use);
        }
        put(&[&leaf, &issuer], &key);
        assert_eq!(scene.renew(), Ok(true));
    }

    #[test]
    fn domains_without_a_certificate_are_known() {
        let scene = Scene::of(
            &[&["a.test"], &["*.b.test"]],
            &["a.test", "x.b.test", "c.test"],
        );
        assert_eq!(scene.own.uncovered(), ["c.test"]);
    }

    #[test]
    fn where_the_old_one_is_refused_as_well_any_is_taken() {
        let scene = Scene::of(&[&["a.test"]], &[]);
        let later = at_day(TODAY) + Duration::from_secs(60 * 24 * 60 * 60);
        scene.write(0, &["a.test"], TODAY, TODAY + 20);
        assert_eq!(scene.own.renew(later).ok(), Some(true));
    }

    #[test]
    fn k02_a_domain_is_not_lost_and_may_move() {
        let scene = Scene::of(&[&["a.test", "b.test"], &["c.test"]], &["a.test", "b.test"]);
        scene.write(0, &["a.test"], TODAY - 1, TODAY + 20);
        assert_eq!(
            scene.renew(),
            Err("the certificate in 0.crt is not for b.test".to_owned())
        );
        assert_eq!(scene.names(), ["a.test b.test", "c.test"]);
        scene.write(1, &["b.test"], TODAY - 1, TODAY + 20);
        assert_eq!(scene.renew(), Ok(true));
        assert_eq!(scene.names(), ["a.test", "b.test"]);
    }

    #[test]
    fn a_name_that_was_never_there_is_not_missed() {
        let scene = Scene::of(&[&["a.test"]], &["z.test"]);
        scene.write(0, &["b.test"], TODAY - 1, TODAY + 20);
        assert_eq!(scene.renew(), Ok(true));
    }
}
