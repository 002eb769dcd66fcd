//! The digest of the container image that this process runs in.

use std::fs::File;
use std::io;
use std::path::{Path, PathBuf};

use sha2::{Digest, Sha256};

use super::world::Env;
use crate::config::env::{IMAGE_DIGEST, IMAGE_FILES};

/// What the environment or Apptainer says the image is; None outside of containers. An error means that it cannot be
/// told here, and says the remedy.
pub fn image_digest(env: Env) -> Result<Option<String>, String> {
    if let Some(digest) = env(IMAGE_DIGEST).filter(|value| !value.trim().is_empty()) {
        return Ok(Some(digest.trim().to_owned()));
    }
    let file = IMAGE_FILES.into_iter().find_map(env).filter(|value| !value.is_empty());
    let Some(file) = file.map(PathBuf::from) else { return Ok(None) };
    of_file(&file).map(|hex| Some(format!("sha256:{hex}"))).map_err(|error| {
        let (file, folder) = (file.display(), file.parent().unwrap_or(&file).display());
        format!(
            "the digest of the image {file} is not known ({error}): bind its folder into the container \
             (--bind {folder}), or set APPTAINERENV_{IMAGE_DIGEST}"
        )
    })
}

/// What the build left beside the image, as sha256sum prints it, unless the image is newer; else it is computed.
fn of_file(image: &Path) -> io::Result<String> {
    let modified = image.metadata()?.modified()?;
    let mut beside = image.as_os_str().to_owned();
    beside.push(".sha256");
    let kept = Path::new(&beside);
    if kept.metadata().and_then(|kept| kept.modified()).is_ok_and(|kept| kept >= modified)
        && let Some(digest) = std::fs::read_to_string(kept).ok().as_deref().and_then(first_digest)
    {
        return Ok(digest);
    }
    let mut hash = Sha256::new();
    io::copy(&mut File::open(image)?, &mut hash)?;
    Ok(hash.finalize().iter().map(|byte| format!("{byte:02x}")).collect())
}

fn first_digest(line: &str) -> Option<String> {
    let word = line.split_whitespace().next()?;
    (word.len() == 64 && word.bytes().all(|byte| byte.is_ascii_hexdigit())).then(|| word.to_lowercase())
}

#[cfg(test)]
mod tests {
    use super::*;

    /// SHA-256 of "image".
    const DIGEST: &str = "6105d6cc76af400325e94d588ce511be5bfdbb73b437dc51eca43917d7a43e3d";

    fn digest(pairs: &[(&str, &Path)]) -> Result<Option<String>, String> {
        image_digest(&|name| {
            pairs.iter().find(|(key, _)| *key == name).map(|(_, value)| value.to_string_lossy().into_owned())
        })
    }

    fn image(folder: &Path) -> PathBuf {
        let path = folder.join("a.sif");
        std::fs::write(&path, "image").unwrap();
        path
    }

    #[test]
    fn outside_of_containers_there_is_none() {
        assert_eq!(digest(&[]), Ok(None));
    }

    #[test]
    fn the_environment_comes_first() {
        let pairs = [(IMAGE_DIGEST, Path::new("sha256:abc")), (IMAGE_FILES[0], Path::new("/none"))];
        assert_eq!(digest(&pairs), Ok(Some("sha256:abc".into())));
    }

    #[test]
    fn an_image_is_hashed_where_nothing_is_kept_beside_it() {
        let folder = tempfile::tempdir().unwrap();
        let path = image(folder.path());
        for name in IMAGE_FILES {
            assert_eq!(digest(&[(name, &path)]), Ok(Some(format!("sha256:{DIGEST}"))));
        }
        std::fs::write(folder.path().join("a.sif.sha256"), "no digest").unwrap();
        assert_eq!(digest(&[(IMAGE_FILES[0], &path)]), Ok(Some(format!("sha256:{DIGEST}"))));
    }

    #[test]
    fn what_is_kept_beside_the_image_is_taken_unless_the_image_is_newer() {
        let folder = tempfile::tempdir().unwrap();
        let path = image(folder.path());
        let kept = "ab".repeat(32);
        std::fs::write(folder.path().join("a.sif.sha256"), format!("{kept}  a.sif\n")).unwrap();
        assert_eq!(digest(&[(IMAGE_FILES[0], &path)]), Ok(Some(format!("sha256:{kept}"))));
        let later = std::time::SystemTime::now() + std::time::Duration::from_secs(60);
        File::options().write(true).open(&path).unwrap().set_modified(later).unwrap();
        assert_eq!(digest(&[(IMAGE_FILES[0], &path)]), Ok(Some(format!("sha256:{DIGEST}"))));
    }

    #[test]
    fn an_image_out_of_sight_is_an_error_with_a_remedy() {
        let error = digest(&[(IMAGE_FILES[0], Path::new("/nowhere/a.sif"))]).unwrap_err();
        assert!(error.contains("--bind /nowhere"), "{error}");
    }
}
