//! Keeps learned tokenizers in a folder, each beside its digest, and never returns one that does not match it.
//!
//! Every process learns the same tokenizer from the same text, so two that do so at once write the same bytes, and
//! files are renamed into place: whoever comes last changes nothing. Losing the folder costs time only.

use std::io::{ErrorKind, Write};
use std::path::{Path, PathBuf};

/// Part of the file's name: raised when the same text would be learned differently.
const FORMAT: u32 = 1;

/// Where one tokenizer is, or will be.
#[derive(Debug)]
pub struct TokenizerCache {
    file: PathBuf,
    digest_file: PathBuf,
}

/// What the cache has.
#[derive(Debug, PartialEq, Eq)]
pub enum Cached {
    Absent,
    /// The file's bytes; they match their digest.
    Found(Vec<u8>),
    /// What is wrong, and that it was not used.
    Damaged(String),
}

impl TokenizerCache {
    /// The place in `folder` of the tokenizer with `vocabulary` tokens learned from `text`.
    pub fn new(folder: &Path, text: &str, vocabulary: usize) -> Self {
        let name =
            format!("bpe-{FORMAT}-{vocabulary}-{}.json", &blake3::hash(text.as_bytes()).to_hex()[..32]);
        let file = folder.join(&name);
        Self { digest_file: folder.join(name + ".blake3"), file }
    }

    /// Reads the tokenizer, if it is there and undamaged.
    pub fn load(&self) -> Cached {
        let bytes = match std::fs::read(&self.file) {
            Ok(bytes) => bytes,
            Err(error) if error.kind() == ErrorKind::NotFound => return Cached::Absent,
            Err(error) => return Cached::Damaged(self.damaged(&error.to_string())),
        };
        let actual = blake3::hash(&bytes).to_string();
        match std::fs::read_to_string(&self.digest_file) {
            Ok(recorded) if recorded.split_whitespace().next() == Some(&actual) => Cached::Found(bytes),
            Ok(_) => Cached::Damaged(self.damaged("its content does not match the digest beside it")),
            Err(error) => Cached::Damaged(self.damaged(&format!("no digest can be read beside it: {error}"))),
        }
    }

    /// Publishes a tokenizer. Its digest comes first, in the format of `b3sum --check`: a process that is killed in
    /// between leaves nothing to be mistaken for a damaged tokenizer.
    pub fn save(&self, definition: &[u8]) -> std::io::Result<()> {
        let name = self.file.file_name().unwrap_or_default().to_string_lossy();
        let line = format!("{}  {name}\n", blake3::hash(definition));
        publish(&self.digest_file, line.as_bytes())?;
        publish(&self.file, definition)
    }

    /// The warning about a file that will be replaced.
    pub fn damaged(&self, reason: &str) -> String {
        format!("cached tokenizer {} is not used ({reason}): learning it again", self.file.display())
    }

    /// The warning about a file that could not be written.
    pub fn not_saved(&self, error: &std::io::Error) -> String {
        format!(
            "tokenizer not saved as {} ({error}): every run will learn it again until data.cache_dir is writable",
            self.file.display()
        )
    }
}

/// Writes a file that others see whole or not at all.
fn publish(path: &Path, bytes: &[u8]) -> std::io::Result<()> {
    let folder = path.parent().unwrap_or(Path::new("."));
    std::fs::create_dir_all(folder)?;
    let mut file = tempfile::NamedTempFile::new_in(folder)?;
    file.write_all(bytes)?;
    file.as_file().sync_all()?;
    file.persist(path).map_err(|failed| failed.error)?;
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    const DEFINITION: &[u8] = b"{\"a\": \"definition\"}";

    fn saved(folder: &Path) -> TokenizerCache {
        let cache = TokenizerCache::new(folder, "text", 300);
        cache.save(DEFINITION).unwrap();
        cache
    }

    #[test]
    fn what_was_saved_is_found() {
        let folder = tempfile::tempdir().unwrap();
        let cache = TokenizerCache::new(&folder.path().join("new/folders"), "text", 300);
        assert_eq!(cache.load(), Cached::Absent);
        cache.save(DEFINITION).unwrap();
        cache.save(DEFINITION).unwrap();
        assert_eq!(cache.load(), Cached::Found(DEFINITION.to_vec()));
        let files = std::fs::read_dir(folder.path().join("new/folders")).unwrap().count();
        assert_eq!(files, 2, "no temporary file stays behind");
    }

    #[test]
    fn another_text_or_vocabulary_is_another_tokenizer() {
        let folder = tempfile::tempdir().unwrap();
        saved(folder.path());
        assert_eq!(TokenizerCache::new(folder.path(), "text.", 300).load(), Cached::Absent);
        assert_eq!(TokenizerCache::new(folder.path(), "text", 301).load(), Cached::Absent);
    }

    #[test]
    fn every_flipped_bit_and_every_truncation_is_noticed() {
        let folder = tempfile::tempdir().unwrap();
        let cache = saved(folder.path());
        for bit in 0..DEFINITION.len() * 8 {
            let mut bytes = DEFINITION.to_vec();
            bytes[bit / 8] ^= 1 << (bit % 8);
            std::fs::write(&cache.file, &bytes).unwrap();
            assert!(matches!(cache.load(), Cached::Damaged(_)), "bit {bit}");
        }
        for length in 0..DEFINITION.len() {
            std::fs::write(&cache.file, &DEFINITION[..length]).unwrap();
            assert!(matches!(cache.load(), Cached::Damaged(_)), "{length} bytes");
        }
    }

    #[test]
    fn a_file_without_its_digest_is_not_used() {
        let folder = tempfile::tempdir().unwrap();
        let cache = saved(folder.path());
        std::fs::remove_file(&cache.digest_file).unwrap();
        let Cached::Damaged(warning) = cache.load() else { panic!("used without a digest") };
        assert!(warning.contains("no digest") && warning.contains(".json"), "{warning}");
        std::fs::write(&cache.digest_file, [0xff, 0xfe]).unwrap();
        assert!(matches!(cache.load(), Cached::Damaged(_)), "a digest that is not text");
    }
}
