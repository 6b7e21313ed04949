#!/usr/bin/env python3
"""Compiles the kernels ahead of time, on a machine without a GPU.

    pip install nvidia-cuda-nvrtc-cu12==12.4.127
    python3 build.py           writes prebuilt/ and its MANIFEST.json
    python3 build.py --check   fails unless prebuilt/ is exactly what the sources give

NVRTC 12.4 makes PTX 8.4, which drivers from 550 on accept; its output is the same bytes on every machine.
"""
import argparse
import ctypes
import gzip
import hashlib
import json
import re
import sys
import sysconfig
from pathlib import Path

HERE = Path(__file__).resolve().parent
PREBUILT = HERE / "prebuilt"
WHEEL = "nvidia-cuda-nvrtc-cu12==12.4.127"
VERSION = (12, 4)
PROGRAMS = ["step", "batch"]
HEADERS = ["attention.h", "bytes.h", "decode.h", "decode_bytes.h", "device.h", "draw.h", "few.h", "gemm.h", "group.h", "head.h", "linear.h", "norm.h", "plan.h", "prompt.h", "prompt_bytes.h", "rank.h", "rows.h", "screen.h", "tensor.h", "token.h", "token_bytes.h", "wide.h"]
FLAGS = ["--std=c++17", "--fmad=false", "--ptxas-options=-v", "--extra-device-vectorization"]
TARGETS = ["sm_80", "sm_90a"]
# Whose PTX is shipped, too: for devices that these have no code for.
PTX_TARGET = "sm_80"


class Nvrtc:
    def __init__(self):
        folder = Path(sysconfig.get_paths()["purelib"]) / "nvidia" / "cuda_nvrtc" / "lib"
        try:
            # The compiler opens its builtins by name: they must be in the process before.
            ctypes.CDLL(str(folder / f"libnvrtc-builtins.so.{VERSION[0]}.{VERSION[1]}"), ctypes.RTLD_GLOBAL)
            self.lib = ctypes.CDLL(str(folder / f"libnvrtc.so.{VERSION[0]}"))
        except OSError as error:
            sys.exit(f"no compiler ({error}); pip install {WHEEL}")
        self.lib.nvrtcGetErrorString.restype = ctypes.c_char_p
        major, minor = ctypes.c_int(), ctypes.c_int()
        self.call("nvrtcVersion", ctypes.byref(major), ctypes.byref(minor))
        if (major.value, minor.value) != VERSION:
            sys.exit(f"nvrtc {major.value}.{minor.value} found, need {VERSION[0]}.{VERSION[1]}")

    def call(self, name, *args):
        code = getattr(self.lib, name)(*args)
        if code:
            raise RuntimeError(f"{name}: {self.lib.nvrtcGetErrorString(code).decode()}")

    def read(self, program, what):
        size = ctypes.c_size_t()
        self.call(f"nvrtcGet{what}Size", program, ctypes.byref(size))
        buffer = ctypes.create_string_buffer(size.value)
        self.call(f"nvrtcGet{what}", program, buffer)
        return buffer.raw

    def compile(self, name, target):
        texts = (ctypes.c_char_p * len(HEADERS))(*[(HERE / header).read_bytes() for header in HEADERS])
        names = (ctypes.c_char_p * len(HEADERS))(*[header.encode() for header in HEADERS])
        program = ctypes.c_void_p()
        file = f"{name}.cu"
        source = (HERE / file).read_bytes()
        self.call("nvrtcCreateProgram", ctypes.byref(program), source, file.encode(), len(HEADERS), texts, names)
        flags = [f.encode() for f in [f"--gpu-architecture={target}", *FLAGS]]
        code = self.lib.nvrtcCompileProgram(program, len(flags), (ctypes.c_char_p * len(flags))(*flags))
        log = self.read(program, "ProgramLog").rstrip(b"\0").decode()
        if code:
            sys.exit(f"{file} {target}:\n{log}")
        return self.read(program, "CUBIN"), self.read(program, "PTX").rstrip(b"\0"), log


def resources(log):
    """Registers of each kernel; a spill is an error."""
    found = {}
    entries = re.split(r"Compiling entry function '", log)[1:]
    for entry in entries:
        name = entry.split("'")[0]
        spill = re.search(r"(\d+) bytes stack frame, (\d+) bytes spill stores, (\d+) bytes spill loads", entry)
        registers = int(re.search(r"Used (\d+) registers", entry).group(1))
        if spill.group(2) != "0" or spill.group(3) != "0":
            sys.exit(f"{name} spills: {spill.group(0)}")
        found[name] = {"registers": registers, "stack_bytes": int(spill.group(1))}
    return found


def build():
    nvrtc, files, kernels = Nvrtc(), {}, {}
    for program in PROGRAMS:
        compiled = {target: nvrtc.compile(program, target) for target in TARGETS}
        for target, (cubin, _, log) in compiled.items():
            files[f"{program}.{target}.cubin.gz"] = gzip.compress(cubin, 9, mtime=0)
            kernels.setdefault(target, {}).update(resources(log))
        ptx = compiled[PTX_TARGET][1]
        files[f"{program}.{PTX_TARGET.replace('sm', 'compute')}.ptx.gz"] = gzip.compress(ptx, 9, mtime=0)
    digest = hashlib.sha256()
    for name in [f"{program}.cu" for program in PROGRAMS] + HEADERS:
        digest.update((HERE / name).read_bytes())
    manifest = {
        "compiler": WHEEL,
        "flags": FLAGS,
        "source_sha256": digest.hexdigest(),
        "kernels": kernels,
        "files": {n: {"sha256": hashlib.sha256(gzip.decompress(d)).hexdigest(), "bytes": len(d)} for n, d in files.items()},
    }
    return files, manifest


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--check", action="store_true")
    check = parser.parse_args().check
    files, manifest = build()
    text = json.dumps(manifest, indent=2) + "\n"
    if check:
        if json.loads((PREBUILT / "MANIFEST.json").read_text()) != manifest:
            sys.exit("prebuilt/MANIFEST.json is not what the sources give: run build.py")
        for name, info in manifest["files"].items():
            found = hashlib.sha256(gzip.decompress((PREBUILT / name).read_bytes())).hexdigest()
            if found != info["sha256"]:
                sys.exit(f"prebuilt/{name} is not what the sources give: run build.py")
        print("prebuilt kernels match their sources")
        return
    PREBUILT.mkdir(exist_ok=True)
    for name, data in files.items():
        (PREBUILT / name).write_bytes(data)
    (PREBUILT / "MANIFEST.json").write_text(text)
    for target, found in manifest["kernels"].items():
        print(target, {name: info["registers"] for name, info in found.items()})
    print({name: info["bytes"] for name, info in manifest["files"].items()})


if __name__ == "__main__":
    main()
