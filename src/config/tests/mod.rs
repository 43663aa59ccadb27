//! The configuration, as operators write it: a file for each section, and one for where values come from.

mod access;
mod cache;
mod server;
mod sources;
mod tls;
mod upstream;

use std::collections::BTreeMap;

use super::*;

const ECR: &str = "000042290000.dkr.ecr.us-west-2.amazonaws.com";

/// A configuration under construction: a file in a folder of its own, variables, flags.
#[derive(Default)]
struct Scene {
    folder: Option<tempfile::TempDir>,
    file: Option<PathBuf>,
    environment: BTreeMap<String, String>,
    flags: Flags,
}

impl Scene {
    fn file(text: &str) -> Self {
        let folder = tempfile::tempdir().expect("folder");
        let file = folder.path().join("config.toml");
        std::fs::write(&file, text).expect("file");
        Self {
            folder: Some(folder),
            file: Some(file),
            ..Self::default()
        }
    }

    fn flags(flags: &[(&'static str, &'static str, &str)]) -> Self {
        let mut scene = Self::file("");
        for (key, flag, value) in flags {
            scene.flags.set(key, flag, [(*value).to_owned()]);
        }
        scene
    }

    fn variable(mut self, name: &str, value: &str) -> Self {
        self.environment.insert(name.to_owned(), value.to_owned());
        self
    }

    fn flag(mut self, key: &'static str, flag: &'static str, value: &str) -> Self {
        self.flags.set(key, flag, [value.to_owned()]);
        self
    }

    fn beside(self, name: &str, text: &str) -> Self {
        let folder = self.folder.as_ref().expect("a scene with a file");
        std::fs::write(folder.path().join(name), text).expect("file");
        self
    }

    fn load(&self) -> Result<Config, Faults> {
        Config::load(Sources {
            file: self.file.as_deref(),
            environment: &self.environment,
            flags: self.flags.clone(),
            files: Files::Required,
        })
    }

    fn faults(&self) -> Vec<String> {
        let faults = self.load().expect_err("faults");
        faults.iter().map(ToString::to_string).collect()
    }
}

fn flags_of_the_first_example() -> Scene {
    Scene::flags(&[
        ("upstream.registry", "--upstream", ECR),
        ("server.domains", "--domain", "registry.mydomain.com"),
        ("access.anonymous", "--anonymous-pull", "pull"),
    ])
}
