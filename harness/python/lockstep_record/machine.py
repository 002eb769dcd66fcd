"""What bits depend on besides the program: processor, libraries, threads."""

import os
import resource
import socket


def resident_bytes_max():
    """The largest resident set of this process so far (Linux counts in KiB)."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024


def processor(device=None):
    """The processor that computes: that of a CUDA device if `device` is one, else this machine's CPU; None if unknown."""
    if device is not None and device.type == "cuda":
        import torch

        properties = torch.cuda.get_device_properties(device)
        capability = f"{properties.major}.{properties.minor}"
        vendor = "AMD" if torch.version.hip else "NVIDIA"
        return {"kind": "gpu", "vendor": vendor, "family": capability, "model": properties.name, "name": properties.name}
    try:
        with open("/proc/cpuinfo", encoding="utf-8", errors="replace") as file:
            return cpu(file.read())
    except OSError:
        return None


def cpu(text):
    """The first processor of a /proc/cpuinfo; None where it does not name its family, as on ARM."""
    facts = {}
    for line in text.splitlines():
        name, colon, value = line.partition(":")
        if not colon:
            if facts:
                break
            continue
        facts.setdefault(name.strip(), value.strip())
    try:
        vendor, family, model = facts["vendor_id"], facts["cpu family"], facts["model"]
    except KeyError:
        return None
    return {"kind": "cpu", "vendor": vendor, "family": family, "model": model, "name": facts.get("model name", "unknown")}


def versions():
    """Libraries and switches that move bits."""
    import torch

    found = {"torch": torch.__version__}
    build = torch.__config__.show()
    for name, start in (("mkl", "Math Kernel Library Version "), ("onednn", "MKL-DNN v")):
        words = build.partition(start)[2].replace("-", " ").split()
        if words:
            found[name] = words[0]
    if torch.version.cuda:
        found["cuda"] = torch.version.cuda
    for name in ("ATEN_CPU_CAPABILITY", "MKL_CBWR", "ONEDNN_MAX_CPU_ISA"):
        if name in os.environ:
            found[name] = os.environ[name]
    return found


def rank_info(rank, optimizer_bytes, master_bytes, device=None):
    """A rank's entry of the manifest."""
    info = {
        "rank": rank,
        "host": socket.gethostname(),
        "optimizer_bytes": optimizer_bytes,
        "master_bytes": master_bytes,
    }
    found = processor(device)
    return info | {"processor": found} if found else info
