"""Pixel values of `stagediff preprocess` against Pillow and transformers' slow CLIPImageProcessor, on many generated pictures.

    test_images.py STAGEDIFF [--count 320] [--seed N]      needs tools/requirements_host.txt

Pictures: JPEG (gray, RGB, CMYK, progressive, every subsampling, qualities 1 to 100, EXIF, restart markers) and PNG (gray, bilevel, palette, alpha,
transparency, 16 bit, interlaced, gamma) from 1 x 1 to 8000 x 6000, long and thin ones too. Settings: CLIP's crop in its three spellings, LLaVA's pad by
config.json, none at all (decoded bytes as they are), exact sizes, other means. Bytes before normalisation and floats after it must be identical.
16-bit gray is compared with the high byte, where Pillow clips. Then truncated files: an error in both. Exit status 1 when anything differs."""
import argparse
import json
import os
import random
import struct
import subprocess
import sys
import tempfile
import zlib

import numpy as np
import PIL
import transformers
from PIL import Image, ImageFile

if int(PIL.__version__.split(".")[0]) >= 12 or int(transformers.__version__.split(".")[0]) >= 5:
    sys.exit(f"test_images.py: needs pillow < 12 and transformers < 5 (tools/requirements_host.txt); found {PIL.__version__} and {transformers.__version__}")
from transformers.models.clip.image_processing_clip import CLIPImageProcessor  # noqa: E402

Image.MAX_IMAGE_PIXELS = None
ImageFile.MAXBLOCK = 2**27   # or the JPEG encoder runs out of buffer on noise
MEAN, STD = [0.48145466, 0.4578275, 0.40821073], [0.26862954, 0.26130258, 0.27577711]
NEW = {"crop_size": {"height": 336, "width": 336}, "do_center_crop": True, "do_convert_rgb": True, "do_normalize": True, "do_rescale": True, "do_resize": True, "image_mean": MEAN,
       "image_std": STD, "image_processor_type": "CLIPImageProcessor", "resample": 3, "rescale_factor": 0.00392156862745098, "size": {"shortest_edge": 336}}
BYTES = {"do_resize": False, "do_rescale": False, "do_normalize": False, "crop_size": 640, "feature_extractor_type": "CLIPFeatureExtractor"}
# name: (files of the folder, keys for CLIPImageProcessor, pad to a square, share of the pictures)
SETTINGS = {
    "bytes": ({"preprocessor_config.json": BYTES}, BYTES, False, 1.0),
    "crop": ({"preprocessor_config.json": NEW}, NEW, False, 1.0),
    "pad": ({"config.json": {"mm_vision_tower": "openai/clip-vit-large-patch14-336", "image_aspect_ratio": "pad"}}, NEW, True, 1.0),
    "crop, whole numbers": ({"preprocessor_config.json": NEW | {"size": 336, "crop_size": 336}}, NEW, False, 0.2),
    "crop, nested": ({"processor_config.json": {"image_processor": NEW, "patch_size": 14}}, NEW, False, 0.2),
    "crop, LLaVA": ({"config.json": {"mm_vision_tower": "openai/clip-vit-large-patch14-336", "image_aspect_ratio": "square"}}, NEW, False, 0.2),
    "224, other colours": ({"preprocessor_config.json": NEW | {"size": 224, "crop_size": 224, "image_mean": [0.5, 0.4, 0.3], "image_std": [0.5, 0.3, 0.7]}},
                           NEW | {"size": {"shortest_edge": 224}, "crop_size": 224, "image_mean": [0.5, 0.4, 0.3], "image_std": [0.5, 0.3, 0.7]}, False, 0.3),
    "exact size, odd crop": ({"preprocessor_config.json": NEW | {"size": {"height": 71, "width": 50}, "crop_size": 63}}, NEW | {"size": {"height": 71, "width": 50}, "crop_size": 63}, False, 0.3),
}


# ---------------------------------------------------------------- pictures
def scene(w, h, rng):
    a, b, k = rng.randint(1, 9), rng.randint(1, 9), rng.randint(0, 255)
    y, x = np.ogrid[0:h, 0:w]
    out = np.empty((h, w, 3), np.uint8)
    out[..., 0] = (x * a + y * b + k) % 256
    out[..., 1] = ((x // (a + 2) + y // (b + 2)) % 2) * 200 + k % 50
    out[..., 2] = (np.sin(x / (3.0 * a)) * 60 + np.cos(y / (2.0 * b)) * 60 + 128).astype(np.uint8)
    noise = np.random.RandomState(k).randint(0, 256, (max(1, h // 3), max(1, w // 3), 3), dtype=np.uint8)
    out[:noise.shape[0], :noise.shape[1]] = noise
    return Image.fromarray(out)


def chunk(tag, data):
    return struct.pack(">I", len(data)) + tag + data + struct.pack(">I", zlib.crc32(tag + data))


def raw_png(path, w, h, depth, kind, rows, interlace=0, extra=b""):
    with open(path, "wb") as f:
        f.write(b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", struct.pack(">IIBBBBB", w, h, depth, kind, 0, 0, interlace)) + extra + chunk(b"IDAT", zlib.compress(rows, 1)) + chunk(b"IEND", b""))


def png_16(path, w, h, rng, channels, kind):
    a = np.random.RandomState(rng.randint(0, 2**31)).randint(0, 65536, (h, w, channels)).astype(">u2")
    raw_png(path, w, h, 16, kind, b"".join(b"\0" + row.tobytes() for row in a))
    return a


def interlaced(path, w, h, rng):
    a, rows = np.asarray(scene(w, h, rng)), b""
    for y, x, dy, dx in ((0, 0, 8, 8), (0, 4, 8, 8), (4, 0, 8, 4), (0, 2, 4, 4), (2, 0, 4, 2), (0, 1, 2, 2), (1, 0, 2, 1)):
        part = a[y::dy, x::dx]
        if part.size:
            rows += b"".join(b"\0" + row.tobytes() for row in part)
    raw_png(path, w, h, 8, 2, rows, interlace=1)


def with_alpha(image, mode, rng):
    image = image.convert(mode)
    image.putalpha(Image.fromarray(np.random.RandomState(rng.randint(0, 2**31)).randint(0, 256, (image.height, image.width), dtype=np.uint8)))
    return image


def palette(path, w, h, rng):
    bits = rng.choice((1, 2, 4, 8))
    image = scene(w, h, rng).convert("P", palette=Image.Palette.ADAPTIVE, colors=rng.randint(2, 2**bits))
    image.save(path, **({} if bits == 8 else {"bits": bits}), **({"transparency": rng.randint(0, 1)} if rng.random() < 0.5 else {}))


def exif(rng):
    value = Image.Exif()
    value[0x112] = rng.randint(1, 8)
    return value


JPEG = {
    "rgb": lambda p, w, h, r: scene(w, h, r).save(p, quality=r.randint(1, 100), subsampling=r.randint(0, 2)),
    "gray": lambda p, w, h, r: scene(w, h, r).convert("L").save(p, quality=r.randint(20, 100)),
    "cmyk": lambda p, w, h, r: scene(w, h, r).convert("CMYK").save(p, quality=r.randint(20, 100)),
    "progressive": lambda p, w, h, r: scene(w, h, r).save(p, quality=r.randint(20, 100), progressive=True, subsampling=r.randint(0, 2)),
    "gray progressive": lambda p, w, h, r: scene(w, h, r).convert("L").save(p, quality=85, progressive=True),
    "exif": lambda p, w, h, r: scene(w, h, r).save(p, quality=r.randint(50, 100), exif=exif(r)),
    "restarts": lambda p, w, h, r: scene(w, h, r).save(p, quality=75, restart_marker_rows=1, optimize=True),
    "no YCbCr": lambda p, w, h, r: scene(w, h, r).save(p, quality=80, keep_rgb=True),
}
PNG = {
    "rgb": lambda p, w, h, r: scene(w, h, r).save(p, compress_level=1),
    "gray": lambda p, w, h, r: scene(w, h, r).convert("L").save(p, compress_level=1),
    "bilevel": lambda p, w, h, r: scene(w, h, r).convert("1").save(p),
    "gray alpha": lambda p, w, h, r: with_alpha(scene(w, h, r), "LA", r).save(p, compress_level=1),
    "rgb alpha": lambda p, w, h, r: with_alpha(scene(w, h, r), "RGBA", r).save(p, compress_level=1),
    "palette": palette,
    "transparent colour": lambda p, w, h, r: scene(w, h, r).save(p, transparency=(r.randint(0, 255), 0, 0), compress_level=1),
    "rgb 16": lambda p, w, h, r: png_16(p, w, h, r, 3, 2) is None,
    "gray alpha 16": lambda p, w, h, r: png_16(p, w, h, r, 2, 4) is None,
    "rgb alpha 16": lambda p, w, h, r: png_16(p, w, h, r, 4, 6) is None,
    "gray 16": lambda p, w, h, r: np.save(p + ".npy", (png_16(p, w, h, r, 1, 0)[..., 0] >> 8).astype(np.uint8)),
    "interlaced": interlaced,
    "gamma": lambda p, w, h, r: raw_png(p, w, h, 8, 2, b"".join(b"\0" + row.tobytes() for row in np.asarray(scene(w, h, r))), extra=chunk(b"gAMA", struct.pack(">I", r.randint(30000, 120000)))),
}
SIZES = [(1, 1), (1, 2), (2, 1), (1, 300), (300, 1), (336, 336), (337, 335), (335, 337), (224, 224), (640, 480), (480, 640), (3, 900), (900, 3), (2000, 10), (10, 2000), (1024, 768)]


def pictures(folder, count, seed):
    rng, out = random.Random(seed), []
    kinds = [("jpg", k, f) for k, f in JPEG.items()] + [("png", k, f) for k, f in PNG.items()]
    for i in range(count):
        end, kind, make = kinds[i % len(kinds)]
        if i // len(kinds) < len(SIZES) and i % 3 == 0:
            w, h = SIZES[i // len(kinds)]
        else:
            w, h = [max(1, int(2 ** rng.uniform(2, 9.6))) for _ in range(2)]
            w, h = min(w, 120 * h), min(h, 120 * w)
        path = os.path.join(folder, f"{i:04}_{kind.replace(' ', '_')}_{w}x{h}.{end}")
        make(path, w, h, rng)
        out.append(path)
    for end, kind, w, h in (("jpg", "rgb", 8000, 6000), ("png", "gray", 8000, 6000), ("jpg", "progressive", 3000, 5000), ("png", "rgb", 4000, 3000)):
        path = os.path.join(folder, f"large_{kind}_{w}x{h}.{end}")
        (JPEG if end == "jpg" else PNG)[kind](path, w, h, rng)
        out.append(path)
    return out


# ---------------------------------------------------------------- the comparison
def read_safetensors(path):
    data = open(path, "rb").read()
    size = struct.unpack("<Q", data[:8])[0]
    header = json.loads(data[8:8 + size])
    return {k: np.frombuffer(data, np.float32, offset=8 + size + v["data_offsets"][0], count=int(np.prod(v["shape"]))).reshape(v["shape"]) for k, v in header.items() if k != "__metadata__"}


def reference(path, keys, pad):
    image = Image.fromarray(np.load(path + ".npy")) if os.path.exists(path + ".npy") else Image.open(path)
    image = image.convert("RGB")
    if pad and image.width != image.height:
        side = max(image.size)
        square = Image.new("RGB", (side, side), tuple(int(255 * m) for m in MEAN))
        square.paste(image, ((side - image.width) // 2, (side - image.height) // 2))
        image = square
    known = ("do_resize", "size", "resample", "do_center_crop", "crop_size", "do_rescale", "rescale_factor", "do_normalize", "image_mean", "image_std")
    keys = {k: v for k, v in keys.items() if k in known}
    out = CLIPImageProcessor(**keys).preprocess(np.asarray(image), return_tensors="np", input_data_format="channels_last")["pixel_values"][0]
    return np.ascontiguousarray(out).astype(np.float32)


def main():
    parser = argparse.ArgumentParser()
    parser.add_argument("stagediff")
    parser.add_argument("--count", type=int, default=320)
    parser.add_argument("--seed", type=int, default=20240731)
    options = parser.parse_args()
    print(f"pillow {PIL.__version__}, transformers {transformers.__version__}, seed {options.seed}")
    bad = 0
    with tempfile.TemporaryDirectory() as work:
        files = pictures(work, options.count, options.seed)
        for name, (folder_files, keys, pad, share) in SETTINGS.items():
            folder = os.path.join(work, name.replace(" ", "_"))
            os.makedirs(folder)
            for file, value in folder_files.items():
                json.dump(value, open(os.path.join(folder, file), "w"))
            some, wrong = files[::round(1 / share)], 0
            for first in range(0, len(some), 60):
                part, out = some[first:first + 60], os.path.join(work, "out.safetensors")
                subprocess.run([options.stagediff, "preprocess", "--model", folder, "--out", out] + [x for f in part for x in ("--image", f)], check=True)
                got = read_safetensors(out)
                for i, path in enumerate(part):
                    want, ours = reference(path, keys, pad), got[f"pixel_values/{i}"]
                    if want.shape != ours.shape or want.tobytes() != ours.tobytes():
                        wrong += 1
                        print(f"  {name}: {os.path.basename(path)}: {want.shape} {ours.shape}" + (f", {np.count_nonzero(want != ours)} values differ, by at most {np.abs(want - ours).max()}" if want.shape == ours.shape else ""))
            print(f"{name:24} {len(some)} pictures, {wrong} differ", flush=True)
            bad += wrong
        rng, accepted, cut_files = random.Random(options.seed), 0, [f for f in files if not os.path.exists(f + ".npy") and 300 < os.path.getsize(f) < 2**20]
        for path in cut_files[::3]:
            data = open(path, "rb").read()
            cut = os.path.join(work, "cut" + path[-4:])
            open(cut, "wb").write(data[:int(len(data) * rng.uniform(0.05, 0.9))])
            try:
                Image.open(cut).convert("RGB")
                theirs = 0
            except (OSError, SyntaxError, ValueError):
                theirs = 2
            run = subprocess.run([options.stagediff, "preprocess", "--model", os.path.join(work, "crop"), "--image", cut, "--out", os.path.join(work, "cut.safetensors")], stderr=subprocess.PIPE)
            if run.returncode != theirs or (theirs and cut.encode() not in run.stderr):
                accepted += 1
                print(f"  truncated {os.path.basename(path)}: exit status {run.returncode}, Pillow's {theirs}: {run.stderr.decode().strip()}")
        print(f"{'truncated':24} {len(cut_files[::3])} pictures, {accepted} differ")
    return bad + accepted > 0


if __name__ == "__main__":
    sys.exit(main())
