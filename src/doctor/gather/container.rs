//! Which container this is, if any: from the traces that container programs leave.

use std::path::Path;

use super::system::first_line;
use crate::config::env::IMAGE_DIGEST;
use crate::doctor::facts::Container;
use crate::launch::Env;

pub fn container(env: Env) -> Option<Container> {
    let marked = |path: &str| Path::new(path).exists();
    identify(env, &marked, &|path| first_line(path))
}

fn identify(
    env: Env,
    exists: &dyn Fn(&str) -> bool,
    line: &dyn Fn(&str) -> Option<String>,
) -> Option<Container> {
    let image = env("APPTAINER_CONTAINER").or_else(|| env("SINGULARITY_CONTAINER"));
    let kind = if image.is_some() || exists("/.singularity.d") {
        "apptainer".to_owned()
    } else if exists("/.dockerenv") {
        "docker".into()
    } else if exists("/run/.containerenv") {
        "podman".into()
    } else {
        // What systemd and others agreed on.
        env("container")?
    };
    // The build writes it beside the image, as sha256sum does.
    let beside = image.as_ref().and_then(|image| line(&format!("{image}.sha256")));
    let beside = beside.and_then(|text| Some(format!("sha256:{}", text.split_whitespace().next()?)));
    let given = env(IMAGE_DIGEST).filter(|digest| !digest.trim().is_empty());
    Some(Container { kind, digest: given.or(beside), image })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn see(variables: &[(&str, &str)], files: &[&str]) -> Option<Container> {
        let env =
            |name: &str| variables.iter().find(|(key, _)| *key == name).map(|(_, value)| (*value).into());
        identify(&env, &|path| files.contains(&path), &|path| {
            (path == "/images/a.sif.sha256").then(|| "abc  a.sif".into())
        })
    }

    #[test]
    fn each_kind_is_known() {
        assert_eq!(see(&[], &[]), None);
        let apptainer = see(&[("APPTAINER_CONTAINER", "/images/a.sif")], &["/.singularity.d"]).unwrap();
        assert_eq!((apptainer.kind.as_str(), apptainer.digest.as_deref()), ("apptainer", Some("sha256:abc")));
        assert_eq!(apptainer.image.as_deref(), Some("/images/a.sif"));
        let docker = see(&[(IMAGE_DIGEST, "sha256:def")], &["/.dockerenv"]).unwrap();
        assert_eq!((docker.kind.as_str(), docker.digest.as_deref()), ("docker", Some("sha256:def")));
        assert_eq!(see(&[], &["/run/.containerenv"]).unwrap().kind, "podman");
        assert_eq!(see(&[("container", "lxc")], &[]).unwrap().kind, "lxc");
    }
}
