"""Videos through `segkit infer`: times, sound, colours and turns are kept, memory is flat, a break loses nothing."""

import os
import signal
import struct
import sys
import weakref
from collections.abc import Callable, Iterator
from fractions import Fraction
from pathlib import Path
from typing import Any

import av
import numpy as np
import pytest

from segkit.cli import infer_video
from segkit.cli.infer import main
from segkit.inference import video
from segkit.inference.images import as_rgb
from segkit.inference.segmenter import Segmenter, load
from segkit.inference.stream import AHEAD
from segkit.io import read_image, write_png

RATE, FRAMES, HEIGHT, WIDTH = 10, 30, 48, 64
SWSCALE = {1: 1, 6: 5}  # its numbers of AVColorSpace: BT.709, SMPTE 170M
SOUND = 16000  # samples a second
COLOURS = ((200, 40, 40), (30, 180, 60), (40, 60, 220), (240, 240, 240), (16, 16, 16))

Run = Callable[..., int]


@pytest.fixture
def run(tiny_checkpoint: Path, tmp_path: Path) -> Run:
    def call(*args: str | Path) -> int:
        options = ("--checkpoint", tiny_checkpoint, "--output", tmp_path / "out", "--device", "cpu", "--alpha", "0")
        return main([*map(str, (*options, *args))])

    return call


def quarters(turns: int = 0) -> np.ndarray:
    """Four colours in four quarters, so that a turn shows."""
    image = np.zeros((HEIGHT, WIDTH, 3), np.uint8)
    for i, colour in enumerate(COLOURS[:4]):
        image[HEIGHT // 2 * (i // 2) :, WIDTH // 2 * (i % 2) :][: HEIGHT // 2, : WIDTH // 2] = colour
    return np.rot90(image, turns)


def make(
    path: Path,
    images: Iterator[np.ndarray] | list[np.ndarray],
    times: Callable[[int], int] = lambda i: i,
    sound: str | None = "aac",
    pix_fmt: str = "yuv420p",
    space: tuple[int, int] = (1, 1),
    options: dict[str, str] | None = None,
) -> Path:
    """A video with a sine; `times` in units of a frame, `space` is AVColorSpace and AVColorRange."""
    with av.open(str(path), "w", options=options or {}) as file:
        stream = file.add_stream("libx264", rate=RATE, options={"crf": "1", "g": "5", "bf": "2"})
        stream.pix_fmt = pix_fmt
        stream.codec_context.colorspace, stream.codec_context.color_range = space
        stream.codec_context.time_base = Fraction(1, RATE)
        noise = file.add_stream(sound, rate=SOUND, layout="mono") if sound else None
        count = 0
        for i, image in enumerate(images):
            if i == 0:
                stream.height, stream.width = image.shape[:2]
            frame = av.VideoFrame.from_ndarray(np.ascontiguousarray(image), format="rgb24")
            frame = frame.reformat(
                format=pix_fmt, dst_colorspace=SWSCALE[space[0]], dst_color_range=space[1], src_color_range=2
            )
            frame.pts, frame.time_base = times(i), Fraction(1, RATE)
            file.mux(stream.encode(frame))
            if noise is not None:
                for _ in range(-(-SOUND // RATE // 400)):
                    wave = np.sin((np.arange(400) + count) * 2 * np.pi * 440 / SOUND)
                    kind = noise.codec_context.format.name
                    is_planar = kind.startswith("flt")
                    samples = wave.astype(np.float32) if is_planar else (wave * 9000).astype(np.int16)
                    some = av.AudioFrame.from_ndarray(samples[None], format=kind, layout="mono")
                    some.sample_rate, some.pts, count = SOUND, count, count + 400
                    file.mux(noise.encode(some))
        file.mux(stream.encode())
        if noise is not None:
            file.mux(noise.encode())
    return path


def moving(count: int = FRAMES, height: int = HEIGHT, width: int = WIDTH) -> list[np.ndarray]:
    return [np.full((height, width, 3), 8 * (i % 30), np.uint8) for i in range(count)]


def frames(path: Path) -> list[tuple[float, np.ndarray]]:
    with av.open(str(path)) as file:
        return [(frame.time, video.to_rgb(frame)) for frame in file.decode(video=0)]


def packets(path: Path) -> list[tuple[float, bytes]]:
    """The sound as it is stored, with its times."""
    with av.open(str(path)) as file:
        return [(float(p.pts * p.time_base), bytes(p)) for p in file.demux(audio=0) if p.size]


@pytest.mark.slow
def test_frames_times_and_sound_are_those_of_the_video(run: Run, tmp_path: Path) -> None:
    irregular = make(tmp_path / "clip.mp4", moving(), times=lambda i: 2 * i + i % 2)
    assert run(irregular, "--output_kinds", "overlay", "side_by_side") == 0
    given, found = frames(irregular), frames(tmp_path / "out/clip_overlay.mp4")
    assert [time for time, _ in found] == [time for time, _ in given] and len(given) == FRAMES
    assert all(abs(a.astype(int) - b).max() <= 4 for (_, a), (_, b) in zip(given, found, strict=True))
    assert packets(tmp_path / "out/clip_overlay.mp4") == packets(irregular) != []
    assert frames(tmp_path / "out/clip_side_by_side.mp4")[7][1].shape == (HEIGHT, 2 * WIDTH + 8, 3)
    assert packets(tmp_path / "out/clip_side_by_side.mp4") == packets(irregular)


@pytest.mark.slow
def test_a_finished_video_is_skipped_and_every_nth_frame_keeps_its_time(
    run: Run, tmp_path: Path, tiny_checkpoint: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    clip = make(tmp_path / "clip.mkv", moving(), sound=None)
    for _ in range(2):
        assert run(clip, "--every", "4", "--frame_labels") == 0
    assert "1 image finished by an earlier run is skipped" in capsys.readouterr().err
    given, found = frames(clip)[::4], frames(tmp_path / "out/clip_overlay.mp4")
    assert [time for time, _ in found] == [time for time, _ in given]
    names = [f"clip_f{4 * i:06d}_labels.png" for i in range(len(given))]
    assert sorted(path.name for path in (tmp_path / "out").glob("*_labels.png")) == names
    segmenter = load(tiny_checkpoint, "cpu")
    for name, (_, image) in zip(names, given, strict=True):
        assert (read_image(tmp_path / "out" / name)[..., 0] == segmenter.predict(image)).all()


@pytest.mark.slow
@pytest.mark.parametrize("pix_fmt", ["yuv420p", "yuv444p"])
@pytest.mark.parametrize("space", [(1, 1), (1, 2), (6, 1), (6, 2)])
def test_colours_of_any_matrix_and_range(run: Run, tmp_path: Path, space: tuple[int, int], pix_fmt: str) -> None:
    clip = make(tmp_path / "clip.mp4", [quarters()] * 2, sound=None, space=space, pix_fmt=pix_fmt)
    assert run(clip) == 0
    for path in (clip, tmp_path / "out/clip_overlay.mp4"):
        image = frames(path)[0][1].astype(int)
        assert abs(image - quarters())[8:16, 8:16].max() < 8 and abs(image - quarters())[-16:-8, -16:-8].max() < 8


@pytest.mark.parametrize("named", [True, False])
@pytest.mark.parametrize("height", [HEIGHT, 720])
@pytest.mark.parametrize("full", [True, False])
@pytest.mark.parametrize("pix_fmt", ["yuv444p", "yuv420p10le"])
def test_colours_where_the_format_does_not_tell_the_range(pix_fmt: str, full: bool, height: int, named: bool) -> None:
    """H.264 decodes full range to formats of its own, others do not; without a name, the height tells the matrix."""
    image = np.full((height, WIDTH, 3), COLOURS[0], np.uint8)
    image[: height // 2] = COLOURS[3]
    matrix = 1 if height == 720 else 5
    frame = av.VideoFrame.from_ndarray(image, format="rgb24").reformat(
        format=pix_fmt, dst_colorspace=matrix, src_color_range=2, dst_color_range=2 if full else 1
    )
    if not named:
        frame.colorspace = 2
    assert abs(video.to_rgb(frame).astype(int) - image)[[4, -4]].max() <= 4


@pytest.mark.slow
@pytest.mark.parametrize(("height", "width"), [(47, 64), (48, 63), (31, 33)])
def test_odd_sides(run: Run, tmp_path: Path, height: int, width: int) -> None:
    clip = make(tmp_path / "clip.mp4", moving(3, height, width), sound=None, pix_fmt="yuv444p")
    assert run(clip) == 0
    (_, image), *_ = frames(tmp_path / "out/clip_overlay.mp4")
    assert image.shape == (height + height % 2, width + width % 2, 3) and image.max() < 8  # no seam


@pytest.mark.slow
@pytest.mark.parametrize(("matrix", "turns"), [((0, 1, -1, 0), -1), ((-1, 0, 0, -1), 2), ((0, -1, 1, 0), 1)])
def test_a_turned_video_is_written_upright(
    run: Run, tmp_path: Path, matrix: tuple[int, int, int, int], turns: int
) -> None:
    """ISO 14496-12, 8.3.2: a pixel (x, y) is shown at (a x + c y, b x + d y)."""
    clip = make(tmp_path / "clip.mp4", [quarters()] * 2, sound=None)
    data, (a, b, c, d) = bytearray(clip.read_bytes()), (value << 16 for value in matrix)
    data[(at := data.index(b"tkhd") + 44) : at + 36] = struct.pack(">9i", a, b, 0, c, d, 0, 0, 0, 1 << 30)
    clip.write_bytes(data)
    assert run(clip) == 0
    with av.open(str(tmp_path / "out/clip_overlay.mp4")) as file:
        frame = next(file.decode(video=0))
    assert frame.rotation == 0
    image = video.to_rgb(frame).astype(int)
    assert image.shape == quarters(turns).shape and abs(image - quarters(turns))[8:16, 8:16].max() < 8


@pytest.mark.slow
@pytest.mark.parametrize("name", ["clip.mp4", "clip.mkv", "clip.avi"])
def test_a_video_that_breaks_off(run: Run, tmp_path: Path, capsys: pytest.CaptureFixture[str], name: str) -> None:
    noise = [np.random.default_rng(i).integers(0, 256, (HEIGHT, WIDTH, 3), np.uint8) for i in range(FRAMES)]
    clip = make(tmp_path / name, noise, options={"movflags": "faststart"} if name == "clip.mp4" else None)
    data = clip.read_bytes()
    clip.write_bytes(data[: len(data) * 6 // 10])
    whole = make(tmp_path / "whole.mp4", moving(3))
    assert run(clip, whole) == 1
    found = frames(tmp_path / "out/clip_overlay.mp4")
    assert 8 <= len(found) < FRAMES and len(packets(tmp_path / "out/clip_overlay.mp4")) > 8
    (line,) = [line for line in capsys.readouterr().err.splitlines() if "error:" in line]
    assert f"{name}: breaks off" in line and f"its first {len(found)} frames are written" in line
    clip.write_bytes(data)
    assert run(clip, whole) == 0 and len(frames(tmp_path / "out/clip_overlay.mp4")) == FRAMES


def test_what_is_no_video(run: Run, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "text.mp4").write_text("no video")
    assert run(tmp_path / "text.mp4", tmp_path / "none.mp4") == 1
    assert run(make(tmp_path / "clip.mp4", moving(3)), "--output_kinds", "labels") == 1
    err = capsys.readouterr().err
    assert "text.mp4: cannot be opened as a video" in err and "none.mp4: cannot be opened" in err
    assert "add overlay or side_by_side" in err and not list((tmp_path / "out").glob("*.mp4"))


def test_without_pyav_one_line_says_what_to_install(
    run: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    clip = make(tmp_path / "clip.mp4", moving(3))
    monkeypatch.setitem(sys.modules, "av", None)
    assert run(clip) == 1
    lines = [line for line in capsys.readouterr().err.splitlines() if "error:" in line]
    assert len(lines) == 1 and "pip install 'segkit-torch[video]'" in lines[0]


def test_annotation_files_are_of_the_images_beside_a_video(
    run: Run, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    clip = make(tmp_path / "clip.mp4", moving(3))
    write_png(tmp_path / "a.png", quarters())
    assert run(clip, tmp_path / "a.png", "--output_kinds", "overlay", "area.csv") == 1
    assert "a.png" in (tmp_path / "out/area.csv").read_text()
    (line,) = [line for line in capsys.readouterr().err.splitlines() if "error:" in line]
    assert "clip.mp4: a video gives no files for annotation tools" in line


@pytest.mark.slow
def test_sound_that_mp4_does_not_take(run: Run, tmp_path: Path) -> None:
    clip = make(tmp_path / "clip.avi", moving(), sound="pcm_s16le")
    assert run(clip) == 0
    found = packets(tmp_path / "out/clip_overlay.mkv")
    assert b"".join(data for _, data in found) == b"".join(data for _, data in packets(clip)) != b""


@pytest.mark.slow
def test_a_camera_is_watched_until_ctrl_c(run: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    clip = make(tmp_path / "clip.mp4", moving())
    monkeypatch.setattr(video, "is_live", lambda path: True)
    write = video.Film.write

    def interrupted(film: video.Film, image: np.ndarray, time: int) -> None:
        write(film, image, time)
        if time * film._source.stream.time_base >= 1:
            os.kill(os.getpid(), signal.SIGINT)

    monkeypatch.setattr(video.Film, "write", interrupted)
    for _ in range(2):
        assert run(clip, "--overwrite") == 0
    for name in ("clip_overlay.mp4", "clip_overlay-2.mp4"):  # no recording replaces another
        assert RATE < len(frames(tmp_path / "out" / name)) < FRAMES
    assert signal.getsignal(signal.SIGINT) is not None


@pytest.mark.slow
def test_few_frames_are_held_however_long_a_video_is(run: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    clip = make(tmp_path / "clip.mp4", (np.full((16, 16, 3), i % 250, np.uint8) for i in range(1000)))
    frames: list[weakref.ref[Watched]] = []
    images: list[weakref.ref[np.ndarray]] = []
    held: list[tuple[int, int]] = []
    read = video.Video.read

    def watched(of: video.Video) -> Iterator[Watched]:
        for frame in read(of):
            one = Watched(frame)
            frames.append(weakref.ref(one))
            if len(frames) % 20 == 0:
                held.append((living(frames), living(images)))
            yield one

    def as_array(segmenter: Segmenter, image: np.ndarray) -> np.ndarray:
        array = as_rgb(image)
        images.append(weakref.ref(array))
        return array

    monkeypatch.setattr(video.Video, "read", watched)
    monkeypatch.setattr(infer_video, "to_rgb", lambda frame: video.to_rgb(frame.frame))

    def queue(segmenter: Segmenter, group: list[np.ndarray]) -> Callable[[], list[np.ndarray]]:
        return lambda: [np.zeros(image.shape[:2], np.uint8) for image in group]

    monkeypatch.setattr(Segmenter, "read", as_array)
    monkeypatch.setattr(Segmenter, "queue", queue)  # the network would take most of the time
    assert run(clip) == 0
    assert len(frames) == 1000 and len(held) == 50
    assert all(0 < some <= AHEAD + 8 for pair in held for some in pair), held


class Watched:
    """A frame that can be referred to weakly."""

    def __init__(self, frame: Any) -> None:
        self.frame, self.pts = frame, frame.pts


def living(references: list[Any]) -> int:
    return sum(reference() is not None for reference in references)
