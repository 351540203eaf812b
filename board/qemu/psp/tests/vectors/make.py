#!/usr/bin/env python3
"""Makes the files beside it with PyPI's sev-snp-measure 0.0.13, or with --check compares them with what it says now.

usage: make.py [--check]   (with sev-snp-measure installed for this interpreter)

The firmware is a made-up one of 16 KiB that has what the tool looks for: a reset address and the list of pages that a
hypervisor adds. Digests stand in digests.txt, one a line: mode, hypervisor, vCPUs, digest. The save areas that the tool
measures for vCPUs stand in files of their own, the first vCPU's and that of all others.
"""

import pathlib
import struct
import subprocess
import sys
import tempfile
import uuid

HERE = pathlib.Path(__file__).parent
SIZE = 0x4000
# (address, size, type): memory, secrets, CPUID; tests/common/firmware.rs has the same list.
SECTIONS = [(0x800000, 0x3000, 1), (0x80D000, 0x1000, 2), (0x80E000, 0x1000, 3), (0x811000, 0x2000, 1)]
RESET = 0x80B004
CASES = [("sev", "QEMU", 0), ("seves", "QEMU", 1), ("seves", "QEMU", 3), ("snp", "QEMU", 1), ("snp", "QEMU", 4),
         ("snp", "gce", 2)]


def entry(guid: str, data: bytes) -> bytes:
    return data + struct.pack("<H", len(data) + 18) + uuid.UUID(guid).bytes_le


def firmware() -> bytes:
    image = bytearray((index * 167 + (index >> 8) * 13) & 0xFF for index in range(SIZE))
    sections = b"".join(struct.pack("<III", *section) for section in SECTIONS)
    metadata = b"ASEV" + struct.pack("<III", 16 + len(sections), 1, len(SECTIONS)) + sections
    start = 0x3000
    image[start:start + len(metadata)] = metadata
    table = entry("00f771de-1a7e-4fcb-890e-68c77e2fb44e", struct.pack("<I", RESET))
    table += entry("dc886566-984a-4798-a75e-5585a7bf67cc", struct.pack("<I", SIZE - start))
    table += struct.pack("<H", len(table) + 18) + uuid.UUID("96b582de-1fb2-45f7-baea-a366c55a082d").bytes_le
    end = SIZE - 32
    image[end - len(table):end] = table
    return bytes(image)


def measure(folder: pathlib.Path, mode: str, vmm: str, vcpus: int) -> str:
    command = [sys.executable, "-m", "sevsnpmeasure.cli", "--mode", mode, "--ovmf", str(folder / "firmware.bin")]
    if vcpus:
        command += ["--vcpus", str(vcpus), "--vcpu-type", "EPYC-v4", "--vmm-type", vmm, "--dump-vmsa"]
    result = subprocess.run(command, cwd=folder, check=True, capture_output=True, text=True)
    return result.stdout.strip()


def main() -> int:
    with tempfile.TemporaryDirectory() as name:
        folder = pathlib.Path(name)
        (folder / "firmware.bin").write_bytes(firmware())
        files = {"firmware.bin": firmware()}
        lines = []
        for mode, vmm, vcpus in CASES:
            lines.append(f"{mode} {vmm} {vcpus} {measure(folder, mode, vmm, vcpus)}")
            for index in range(min(vcpus, 2)):
                page = (folder / f"vmsa{index}.bin").read_bytes()
                files[f"{mode}-{vmm}-vmsa{index}.bin"] = page
        files["digests.txt"] = ("\n".join(lines) + "\n").encode()
    if "--check" in sys.argv:
        wrong = [name for name, data in files.items() if (HERE / name).read_bytes() != data]
        print(f"differs: {', '.join(wrong)}" if wrong else f"{len(CASES)} digests are the same")
        return 1 if wrong else 0
    for name, data in files.items():
        (HERE / name).write_bytes(data)
    return 0


if __name__ == "__main__":
    sys.exit(main())
