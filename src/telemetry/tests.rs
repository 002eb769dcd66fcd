//! The thread with a source that is made up; and the way to a GPU's sensors, over libraries that stand in for NVIDIA's.

use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Instant;

use lockstep_record::{TelemetryLine, read_lines};

use super::driver::Identity;
use super::*;

/// Says how often it was asked, as memory, which goes up and down.
struct Counting(u64);

impl Source for Counting {
    fn read(&mut self) -> TelemetryLine {
        self.0 += 1;
        let memory_used_bytes = Some(if self.0 == 2 { 900 } else { self.0 });
        TelemetryLine { memory_used_bytes, ..TelemetryLine::default() }
    }
}

/// A driver that does not answer.
struct Hanging;

impl Source for Hanging {
    fn read(&mut self) -> TelemetryLine {
        std::thread::sleep(Duration::from_secs(600));
        TelemetryLine::default()
    }
}

fn lines(path: &Path) -> Vec<TelemetryLine> {
    read_lines(path).unwrap().map(Result::unwrap).collect()
}

/// Waits, within a limit, until the file has so many lines.
fn wait_for_lines(path: &Path, count: usize) {
    let started = Instant::now();
    while std::fs::read_to_string(path).unwrap_or_default().matches('\n').count() < count {
        assert!(started.elapsed() < Duration::from_secs(20), "{} has too few lines", path.display());
        std::thread::sleep(Duration::from_millis(2));
    }
}

#[test]
fn every_look_is_a_line_and_the_last_one_is_taken_at_the_end() {
    let folder = tempfile::tempdir().unwrap();
    let path = RunDir::new(folder.path()).rank_telemetry(3);
    assert!(path.ends_with("telemetry/rank-00003.jsonl"));
    let telemetry = Telemetry::start(Box::new(Counting(0)), &path, Duration::from_millis(5)).unwrap();
    wait_for_lines(&path, 3);
    telemetry.at_step(7);
    drop(telemetry);
    let all = lines(&path);
    let last = all.last().unwrap();
    assert_eq!((last.step, last.memory_used_bytes), (7, Some(all.len() as u64)));
    assert_eq!(all[0].memory_used_bytes_max, Some(1));
    assert!(all[1..].iter().all(|line| line.memory_used_bytes_max == Some(900)), "{all:?}");
    assert!(all.is_sorted_by_key(|line| line.unix_ms) && all[0].unix_ms > 1_700_000_000_000);
    // What was not read is null, and there.
    let text = std::fs::read_to_string(&path).unwrap();
    assert!(text.lines().all(|line| line.contains("\"power_mw\":null")), "{text}");
}

/// With an interval longer than the run: the first look and the last one.
#[test]
fn a_short_run_has_its_end() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("rank.jsonl");
    let telemetry = Telemetry::start(Box::new(Counting(0)), &path, Duration::from_secs(3600)).unwrap();
    wait_for_lines(&path, 1);
    drop(telemetry);
    assert_eq!(lines(&path).len(), 2);
}

#[test]
fn a_driver_that_hangs_does_not_keep_the_run() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("rank.jsonl");
    let telemetry = Telemetry::start(Box::new(Hanging), &path, Duration::from_millis(1)).unwrap();
    let started = Instant::now();
    drop(telemetry.with_limit(Duration::from_millis(50)));
    assert!(started.elapsed() < Duration::from_secs(10), "{:?}", started.elapsed());
    assert_eq!(lines(&path).len(), 0);
}

/// As a resume finds it: what a crash cut short is no line.
#[test]
fn an_earlier_executions_lines_are_kept_but_for_one_that_was_cut() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("rank.jsonl");
    let whole =
        serde_json::to_string(&TelemetryLine { unix_ms: 1, ..TelemetryLine::default() }).unwrap() + "\n";
    for (before, kept) in [
        (format!("{whole}{{\"unix_ms\":17"), 1),
        (whole.repeat(40), 40),
        ("{\"unix_ms\":17".to_owned(), 0),
        (String::new(), 0),
    ] {
        std::fs::write(&path, &before).unwrap();
        drop(Telemetry::start(Box::new(Counting(0)), &path, Duration::from_secs(3600)).unwrap());
        let all = lines(&path);
        assert_eq!(all.iter().filter(|line| line.unix_ms == 1).count(), kept);
        assert_eq!(all.len(), kept + 2, "{before}");
    }
}

#[test]
fn a_file_that_cannot_be_written_is_an_error_at_the_start_and_harmless_later() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("file/rank.jsonl");
    std::fs::write(folder.path().join("file"), "").unwrap();
    assert!(Telemetry::start(Box::new(Counting(0)), &path, Duration::from_millis(1)).is_err());
    // The device takes nothing: the thread ends, and the run does not notice.
    let full = Path::new("/dev/full");
    if full.exists() {
        drop(Telemetry::start(Box::new(Counting(0)), full, Duration::from_millis(1)).unwrap());
    }
}

#[test]
fn a_rank_without_a_gpu_has_no_telemetry() {
    let folder = tempfile::tempdir().unwrap();
    let run = RunDir::new(folder.path());
    assert!(of_rank(Device::Cpu, &run, 0, 1.0).is_none());
    assert!(of_rank(Device::Cuda(0), &run, 0, 0.0).is_none());
    assert!(!run.telemetry().exists());
}

/// A driver whose device 0 is the machine's second GPU, as with `CUDA_VISIBLE_DEVICES=1`.
const CUDA: &str = r#"
#include <string.h>
int cuInit(unsigned flags) { return (int)flags; }
int cuDeviceGet(int *device, int ordinal) { *device = 40 + ordinal; return ordinal == 0 ? 0 : 101; }
int cuDeviceGetUuid_v2(char *uuid, int device) {
  if (device != 40) return 1;
  for (int i = 0; i < 16; i++) uuid[i] = (char)(0xa0 + i);
  return 0;
}
int cuDeviceGetPCIBusId(char *text, int length, int device) { strncpy(text, "0000:3B:00.0", length); return 0; }
"#;

/// Two GPUs, of which the second is found by either name. It has no power sensor, and this version no temperature.
const MANAGEMENT: &str = r#"
#include <string.h>
static int gpus[2];
static int at(const char *name, const char *wanted, void **device) {
  *device = &gpus[strcmp(name, wanted) == 0];
  return *device == &gpus[1] ? 0 : 6;
}
int nvmlInit_v2(void) { return 0; }
int nvmlShutdown(void) { return 0; }
int nvmlDeviceGetHandleByUUID(const char *uuid, void **device) {
  return at(uuid, "GPU-a0a1a2a3-a4a5-a6a7-a8a9-aaabacadaeaf", device);
}
int nvmlDeviceGetHandleByPciBusId_v2(const char *id, void **device) { return at(id, "0000:3B:00.0", device); }
struct utilization { unsigned gpu, memory; };
int nvmlDeviceGetUtilizationRates(void *device, struct utilization *percent) {
  percent->gpu = device == &gpus[1] ? 97 : 1;
  percent->memory = 41;
  return 0;
}
struct memory { unsigned version; unsigned long long total, reserved, free, used; };
int nvmlDeviceGetMemoryInfo_v2(void *device, struct memory *memory) {
  memory->total = 80ull << 30;
  memory->used = 3ull << 30;
  return 0;
}
int nvmlDeviceGetPowerUsage(void *device, unsigned *power) { return 3; }
int nvmlDeviceGetClockInfo(void *device, int kind, unsigned *clock) { *clock = 1000 + kind; return 0; }
"#;

fn compiled(folder: &Path, name: &str, source: &str) -> PathBuf {
    let (code, library) = (folder.join(format!("{name}.c")), folder.join(name));
    std::fs::write(&code, source).unwrap();
    let status = Command::new("cc").args(["-shared", "-fPIC", "-o"]).arg(&library).arg(&code).status();
    assert!(status.is_ok_and(|status| status.success()), "a C compiler, which building lockstep needs");
    library
}

#[test]
fn the_gpu_that_cuda_shows_first_is_the_one_that_is_read() {
    let folder = tempfile::tempdir().unwrap();
    let (driver, management) =
        (compiled(folder.path(), "cuda.so", CUDA), compiled(folder.path(), "nvml.so", MANAGEMENT));
    let found = identity(&driver, 0).unwrap();
    assert_eq!(found.uuid_texts()[0], "GPU-a0a1a2a3-a4a5-a6a7-a8a9-aaabacadaeaf");
    let only_bus = Identity { uuid: None, ..found.clone() };
    for identity in [&found, &only_bus] {
        let line = NvmlSource::open(&management, 0, identity).unwrap().read();
        assert_eq!((line.utilisation_percent, line.memory_utilisation_percent), (Some(97), Some(41)));
        assert_eq!((line.memory_used_bytes, line.memory_total_bytes), (Some(3 << 30), Some(80 << 30)));
        assert_eq!((line.sm_clock_mhz, line.memory_clock_mhz), (Some(1001), Some(1002)));
        // What fails, what the library lacks, and what no allocator tells.
        assert_eq!((line.power_mw, line.temperature_c, line.tensor_bytes), (None, None, None));
    }
    assert!(identity(&driver, 1).unwrap_err().contains("cuDeviceGet of"));
    let unknown = Identity { uuid: Some([7; 16]), pci_bus_id: Some("0000:01:00.0".into()) };
    let error = NvmlSource::open(&management, 0, &unknown).err().unwrap();
    assert!(error.contains("does not know the GPU that CUDA calls 0"), "{error}");
    let missing = Path::new("/no/such/library.so");
    assert!(identity(missing, 0).is_err() && NvmlSource::open(missing, 0, &found).is_err());
    assert!(identity(&management, 0).unwrap_err().contains("has no function cuInit"));
}
