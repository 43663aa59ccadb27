//! The folder of a site of one's own, in front of the demo's simulated ECR.

use std::fs;
use std::io::{self, Write as _};
use std::os::unix::fs::OpenOptionsExt as _;
use std::path::Path;

use super::Failure;
use crate::simulator::{FULL_ACCESS_KEY, Simulator};

/// Writes `config.toml` and `environment` into `folder`, which is made if it is missing; those of an earlier
/// demo are replaced: its ports are gone.
///
/// # Errors
/// The folder or a file cannot be written.
pub(super) fn make(folder: &Path, simulator: &Simulator) -> Result<(), Failure> {
    let config = format!(
        "# A site of one's own, in front of the demo's simulated ECR.\n\
         [server]\n\
         listen = [\"http://127.0.0.1:5081\"]\n\
         state_dir = \"state\"\n\
         admin = \"127.0.0.1:9091\"\n\
         admin_socket = \"admin.sock\"\n\
         \n\
         [cache]\n\
         dir = \"cache\"\n\
         max_size = \"1GiB\"\n\
         min_free = \"64MiB\"\n\
         \n\
         [access]\n\
         anonymous = \"pull\"\n\
         \n\
         [[upstream]]\n\
         name = \"ecr\"\n\
         registry = \"{}\"\n\
         endpoint = \"{}\"\n",
        simulator.registry_host(),
        simulator.endpoint()
    );
    let environment = format!(
        "AWS_ACCESS_KEY_ID={FULL_ACCESS_KEY}\n\
         AWS_SECRET_ACCESS_KEY=simulated\n\
         AWS_ENDPOINT_URL_ECR={}\n",
        simulator.api_endpoint()
    );
    fs::create_dir_all(folder).map_err(|error| cannot(folder, &error))?;
    for (name, text) in [("config.toml", config), ("environment", environment)] {
        let path = folder.join(name);
        let mut options = fs::OpenOptions::new();
        options.write(true).create(true).truncate(true).mode(0o600);
        options
            .open(&path)
            .and_then(|mut file| file.write_all(text.as_bytes()))
            .map_err(|error| cannot(&path, &error))?;
    }
    Ok(())
}

fn cannot(path: &Path, error: &io::Error) -> Failure {
    Failure::Failed(format!("--site: {}: {error}", path.display()))
}
