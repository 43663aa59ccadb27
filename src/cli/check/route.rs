//! `check --route IMAGE [--ns HOST]`: where a name leads, and why.

use super::Finding;
use crate::config::Config;
use crate::jobs::operations::Asked;
use crate::oci::{Because, ImageName, Led};

const SUBJECT: &str = "route";
const MEND: &str = "write a [[route]] that is about it: what none is about is refused";

/// One line: where the image leads, asked as clients do, or as containerd does with `ns`.
pub(super) fn explain(config: &Config, image: &ImageName, ns: Option<&str>) -> Finding {
    let names = config.names();
    let asked = names.asked(image, ns);
    let named = ns.map_or_else(String::new, |ns| format!(" with ns={ns}"));
    match asked {
        Err(why) => Finding::fail(
            SUBJECT,
            format!("{image}{named} leads nowhere: {why}"),
            MEND,
        ),
        Ok(Asked { led, .. }) => {
            let by = reason(config, &led);
            let Led { repo, .. } = led;
            let mut upstreams = config.upstreams.iter();
            let upstream = upstreams.find(|upstream| *upstream.name == *repo.upstream);
            let registry = upstream.map_or("", |upstream| upstream.registry.name());
            let text = format!(
                "{image}{named} is {registry}/{} (upstream {:?}), by {by}",
                repo.repository, repo.upstream
            );
            Finding::ok(SUBJECT, text)
        }
    }
}

fn reason(config: &Config, led: &Led) -> String {
    match led.because {
        Because::Route(number) => {
            let route = config.leading_routes().nth(number);
            route.map_or_else(String::new, |(number, route)| {
                format!("[[route]] {number}: {route}")
            })
        }
        Because::Registry => "the registry that it is named after".to_owned(),
        Because::OnlyUpstream => "being the only upstream".to_owned(),
    }
}
