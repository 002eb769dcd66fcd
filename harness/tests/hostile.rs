//! Records that are damaged, from the future, or meant to harm: an error that names the file, never a verdict.

mod common;

use std::io::Write;
use std::path::Path;

use common::{Bench, STEPS, harness, read_manifest, write_manifest};
use lockstep_record::{
    BLOCK_BYTES, CheckpointFile, CheckpointManifest, Piece, RunDir, TensorEntry, block_digests, tensor_digest,
};
use proptest::prelude::*;

/// Damages the candidate's files; the comparison must end with 101 and this message.
fn refused(damage: impl FnOnce(&RunDir), expected: &str) {
    let bench = Bench::new();
    let [_, candidate] = bench.write();
    damage(&candidate);
    let (code, out, errors) = bench.compare(&[]);
    assert_eq!(code, 101, "{expected}: {out}{errors}");
    assert!(errors.contains(expected), "`{errors}` does not contain `{expected}`");
}

fn manifest(change: impl FnOnce(&mut CheckpointManifest)) -> impl FnOnce(&RunDir) {
    move |run| {
        let folder = run.checkpoint(STEPS);
        let mut manifest = read_manifest(&folder);
        change(&mut manifest);
        write_manifest(&folder, &manifest);
    }
}

fn shard(run: &RunDir) -> std::path::PathBuf {
    run.checkpoint(STEPS).join("shard-00001-of-00003.safetensors")
}

#[test]
fn a_cut_or_broken_line_is_named() {
    let cut = |path: &Path| {
        let text = std::fs::read_to_string(path).unwrap();
        std::fs::write(path, &text[..text.len() - 9]).unwrap();
    };
    refused(|run| cut(&run.metrics()), "metrics.jsonl:5: the last line is cut short");
    refused(|run| cut(&run.digests()), "digests.jsonl:42: the last line is cut short");
    refused(|run| std::fs::write(run.samples(), "{\"step\":1,\n").unwrap(), "samples.jsonl:1:");
    refused(|run| std::fs::remove_file(run.metrics()).unwrap(), "metrics.jsonl");
    refused(|run| std::fs::write(run.manifest(), "{}").unwrap(), "manifest.json: missing field");
    let newer = |run: &RunDir| std::fs::write(run.manifest(), "{\"record_version\":2}").unwrap();
    refused(newer, "record version 2 is newer");
}

#[test]
fn steps_that_repeat_are_refused() {
    refused(
        |run| {
            let text = std::fs::read_to_string(run.metrics()).unwrap();
            std::fs::write(run.metrics(), format!("{text}{text}")).unwrap();
        },
        "metrics.jsonl: line 6: step 1 after step 5",
    );
}

#[test]
fn a_pipe_in_place_of_a_file_does_not_hang() {
    let pipe = |path: std::path::PathBuf| {
        std::fs::remove_file(&path).unwrap();
        assert!(std::process::Command::new("mkfifo").arg(&path).status().unwrap().success());
    };
    refused(|run| pipe(run.metrics()), "metrics.jsonl: not a plain file");
    refused(|run| pipe(shard(run)), "not a plain file");
}

#[test]
fn files_outside_the_checkpoint_are_never_opened() {
    for name in
        ["../../../outside", "/etc/passwd", "..", ".", "", "a/b", "./shard-00000-of-00003.safetensors"]
    {
        let change = |manifest: &mut CheckpointManifest| {
            manifest.tensors[0].pieces[0].file = name.into();
            let listed = CheckpointFile { name: name.into(), ..manifest.files[0].clone() };
            manifest.files.push(listed);
        };
        refused(manifest(change), "is not a plain file name");
    }
    refused(
        |run| {
            let real = run.path().join("elsewhere");
            std::fs::rename(shard(run), &real).unwrap();
            std::os::unix::fs::symlink(&real, shard(run)).unwrap();
        },
        "a symbolic link, which is refused",
    );
    refused(manifest(|m| m.tensors[0].pieces[0].file = "other".into()), "not in its list of files");
}

/// Whatever in a run directory is a link could lead to any file of whoever reads it.
#[test]
fn links_out_of_the_run_directory_are_refused() {
    let outside = tempfile::tempdir().unwrap();
    let link = |path: &Path| {
        let place = outside.path().join(path.file_name().unwrap());
        std::fs::rename(path, &place).unwrap();
        std::os::unix::fs::symlink(&place, path).unwrap();
    };
    type Place = fn(&RunDir) -> std::path::PathBuf;
    let places: [(Place, &str); 6] = [
        (RunDir::manifest, "manifest.json: a symbolic link"),
        (RunDir::metrics, "metrics.jsonl: a symbolic link"),
        (RunDir::samples, "samples.jsonl: a symbolic link"),
        (RunDir::digests, "digests.jsonl: a symbolic link"),
        (RunDir::checkpoints, "checkpoints: a symbolic link"),
        (|run| run.checkpoint(STEPS), "step-00000005: a symbolic link"),
    ];
    for (place, expected) in places {
        refused(|run| link(&place(run)), expected);
    }
    // One that leads nowhere is no missing file.
    let dangling = |run: &RunDir| {
        std::fs::remove_file(run.digests()).unwrap();
        std::os::unix::fs::symlink("nowhere", run.digests()).unwrap();
    };
    refused(dangling, "digests.jsonl: a symbolic link");
    let bench = Bench::new();
    let [_, run] = bench.write();
    for (command, folder, expected) in [
        ("flight", run.flight(), "flight: a symbolic link"),
        ("trace", run.traces(), "trace: a symbolic link"),
    ] {
        std::fs::create_dir(&folder).unwrap();
        link(&folder);
        let (code, _, errors) = harness(&[command, run.path().to_str().unwrap()]);
        assert!(code == 101 && errors.contains(expected), "{code} {errors}");
    }
    // The run directory itself may be one: somebody named it.
    let named = outside.path().join("latest");
    let other = Bench::new();
    let [golden, candidate] = other.write();
    std::os::unix::fs::symlink(candidate.path(), &named).unwrap();
    let (code, out, _) = harness(&["compare", golden.path().to_str().unwrap(), named.to_str().unwrap()]);
    assert_eq!(code, 0, "{out}");
}

#[test]
fn what_a_record_says_cannot_drive_the_terminal() {
    let mut bench = Bench::new();
    for run in [&mut bench.golden, &mut bench.candidate] {
        run.digests[3].tensor = "\u{1b}]0;title\u{7}\u{202e}w".into();
    }
    bench.candidate.digests[3].digest.0 ^= 1;
    bench.write();
    let (_, out, errors) = bench.compare(&[]);
    assert!(out.contains("\\u{1b}]0;title\\u{7}\\u{202e}w"), "{out}");
    refused(
        |run| std::fs::write(run.samples(), "{\"step\":1,\"micro_batches\":\"\u{9b}\u{202e}\"}\n").unwrap(),
        "samples.jsonl:1:",
    );
    let hazards = |text: &str| text.chars().any(|c| c != '\n' && (c.is_control() || c == '\u{202e}'));
    assert!(!hazards(&out) && !hazards(&errors), "{out}{errors}");
}

#[test]
fn pieces_must_tile_their_tensor() {
    refused(manifest(|m| m.tensors[0].pieces[1].offset += 1), "gap or overlap");
    refused(manifest(|m| m.tensors[0].pieces[1].offset -= 1), "gap or overlap");
    refused(manifest(|m| drop(m.tensors[0].pieces.pop())), "its pieces have");
    refused(manifest(|m| m.tensors[0].pieces[0].length = u64::MAX), "entry `model/wte.weight` has shape");
    refused(manifest(|m| m.tensors[0].pieces[0].key = "none".into()), "entry `none` is missing");
}

#[test]
fn absurd_sizes_cost_nothing() {
    let both = |change: fn(&mut CheckpointManifest)| {
        let bench = Bench::new();
        for run in bench.write() {
            manifest(change)(&run);
        }
        let (code, _, errors) = bench.compare(&[]);
        assert_eq!(code, 101);
        errors
    };
    assert!(both(|m| m.tensors[0].shape = vec![u64::MAX, u64::MAX]).contains("has too many elements"));
    assert!(both(|m| m.tensors[0].shape = vec![1 << 40]).contains("its pieces have"));
    assert!(both(|m| m.tensors[0].dtype = "F4".into()).contains("unknown dtype `F4`"));
    assert!(both(|m| m.tensors[0].dtype = "F64".into()).contains("is F32, but its manifest says F64"));
}

#[test]
fn a_damaged_shard_is_named() {
    let rewrite = |run: &RunDir, change: fn(&mut Vec<u8>)| {
        let mut bytes = std::fs::read(shard(run)).unwrap();
        change(&mut bytes);
        std::fs::write(shard(run), bytes).unwrap();
    };
    refused(|run| rewrite(run, |bytes| bytes.truncate(100)), "has 100 bytes, but its manifest says");
    refused(|run| rewrite(run, |bytes| bytes[..8].fill(0xff)), "safetensors header claims");
    refused(|run| rewrite(run, |bytes| bytes[8] = b'['), "safetensors header is not valid");
    refused(|run| std::fs::remove_file(shard(run)).unwrap(), "shard-00001-of-00003.safetensors");
}

#[test]
fn a_flipped_bit_in_both_checkpoints_is_still_seen() {
    // Both runs hold the same wrong bits, so only the manifests' digests can tell.
    let mut bench = Bench::new();
    bench.golden.shards = 3;
    for run in bench.write() {
        let mut bytes = std::fs::read(shard(&run)).unwrap();
        *bytes.last_mut().unwrap() ^= 1;
        std::fs::write(shard(&run), bytes).unwrap();
    }
    let (code, out, _) = bench.compare(&[]);
    assert_eq!(code, 100, "{out}");
    assert!(out.contains("the golden checkpoint is damaged"), "{out}");
}

/// A checkpoint of 1 GiB, compared under a limit of 256 MiB of address space. Its file is all hole, so it takes no
/// room on disk.
#[test]
fn a_checkpoint_larger_than_memory_is_compared_all_the_same() {
    const ELEMENTS: u64 = 1 << 28;
    let bench = Bench::new();
    for run in bench.write() {
        let folder = run.checkpoint(STEPS);
        let end = ELEMENTS * 4;
        let header = format!(r#"{{"w":{{"dtype":"F32","shape":[{ELEMENTS}],"data_offsets":[0,{end}]}}}}"#);
        let mut file = std::fs::File::create(folder.join("large.safetensors")).unwrap();
        file.write_all(&(header.len() as u64).to_le_bytes()).unwrap();
        file.write_all(header.as_bytes()).unwrap();
        let bytes = 8 + header.len() as u64 + end;
        file.set_len(bytes).unwrap();
        let block = block_digests(&[0; BLOCK_BYTES], BLOCK_BYTES)[0];
        manifest(|manifest| {
            let name = "large.safetensors".to_owned();
            manifest.files.push(CheckpointFile { name: name.clone(), bytes, blake3: String::new() });
            manifest.tensors = vec![TensorEntry {
                name: "model/w".into(),
                dtype: "F32".into(),
                shape: vec![ELEMENTS],
                digest: tensor_digest(std::iter::repeat_n(block, (ELEMENTS / 1024) as usize)),
                pieces: vec![Piece { file: name, key: "w".into(), offset: 0, length: ELEMENTS }],
            }];
        })(&run);
    }
    let [golden, candidate] = bench.paths();
    let output = std::process::Command::new("/bin/sh")
        .args([
            "-c",
            "ulimit -v 262144 && exec \"$0\" compare \"$1\" \"$2\"",
            env!("CARGO_BIN_EXE_lockstep-harness"),
        ])
        .args([&golden, &candidate])
        .output()
        .unwrap();
    let text = String::from_utf8_lossy(&output.stdout);
    assert_eq!(output.status.code(), Some(0), "{text}{}", String::from_utf8_lossy(&output.stderr));
    assert!(text.contains(&format!(" {ELEMENTS} ")), "{text}");
}

#[test]
fn a_wrong_command_line_is_exit_code_2() {
    let bench = Bench::new();
    bench.write();
    assert_eq!(bench.compare(&["--rtol", "nan"]).0, 2);
    assert_eq!(bench.compare(&["--exact", "--atol", "1"]).0, 2);
    let (code, _, errors) = harness(&["compare", "nowhere", "nowhere"]);
    assert_eq!(code, 2);
    assert!(errors.contains("nowhere: not a run directory"), "{errors}");
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(200))]

    /// Whatever is done to one byte of any file, the library answers; it never panics.
    #[test]
    fn no_damage_panics(file in 0usize..6, at: prop::sample::Index, byte: u8) {
        let bench = Bench::new();
        let [golden, candidate] = bench.write();
        let checkpoint = candidate.checkpoint(STEPS);
        let files = [
            candidate.manifest(), candidate.metrics(), candidate.samples(), candidate.digests(),
            checkpoint.join("manifest.json"), shard(&candidate),
        ];
        let mut bytes = std::fs::read(&files[file]).unwrap();
        let index = at.index(bytes.len());
        bytes[index] = byte;
        std::fs::write(&files[file], bytes).unwrap();
        let mode = lockstep_harness::compare::Mode::Exact;
        let _ = lockstep_harness::compare::compare(golden.path(), candidate.path(), mode);
    }
}
