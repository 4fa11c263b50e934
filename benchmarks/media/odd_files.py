"""Unusual media files, made with the ffmpeg command line from its test pattern, for `compare_ffmpeg.py`.

Each entry is the name of a file with the options of the encoder and the pattern it encodes. The names say what is
unusual: the codec and pixel format, or a property such as the matrix, range, chroma siting, rate, shape of the pixels
or rotation.
"""

import subprocess
from pathlib import Path

_H264 = "-c:v libx264 -pix_fmt yuv420p"
_TRANSPARENT = "geq=lum='p(X,Y)':cb='p(X,Y)':cr='p(X,Y)':a='if(lt(X,80),0,255)'"
_PALETTE = "-vf split[a][b];[a]palettegen[p];[b][p]paletteuse"
_DROP = "-vf select='not(mod(n,3))+gt(n,20)' -vsync vfr"
_PIXEL_FORMATS = "yuv420p yuv422p yuv444p yuvj420p yuv420p10le yuv422p10le yuv444p10le gray"
_MATRICES = {
    "bt709": "bt709",
    "smpte170m": "601",
    "bt470bg": "470bg",
    "smpte240m": "240m",
    "bt2020nc": "2020",
    "fcc": "fcc",
}
_SITINGS = ("left", "center", "topleft", "top", "bottomleft", "bottom")
_CODECS = """
libx265 yuv420p mp4; libx265 yuv420p10le mkv; libvpx yuv420p webm; libvpx-vp9 yuv420p webm; libvpx-vp9 yuv444p mkv;
libaom-av1 yuv420p mp4; libsvtav1 yuv420p10le mkv; mpeg4 yuv420p avi; mpeg4 yuv420p mp4; libxvid yuv420p avi;
libx264 yuv420p ts; libx264 yuv420p flv; flv yuv420p flv; libtheora yuv420p ogv; wmv2 yuv420p wmv; msmpeg4 yuv420p avi;
mjpeg yuvj420p avi; mjpeg yuvj422p mov; prores_ks yuv422p10le mov; ffv1 yuv420p mkv; ffv1 bgr0 avi; huffyuv yuv422p avi;
rawvideo bgr24 avi; rawvideo yuv420p nut; wrapped_avframe yuv420p y4m; qtrle rgb24 mov; png rgb24 mov; utvideo gbrp avi;
libx264rgb rgb24 mkv; v210 yuv422p10le mov; cinepak rgb24 avi; svq1 yuv410p mov; zmbv bgr0 avi; libx264 yuv420p h264;
libx265 yuv420p hevc; libvpx-vp9 yuv420p ivf; rv10 yuv420p rm; libx264 yuv420p m4v; libx264 yuv420p mov
"""


def pattern(size: str = "160x96", rate: str = "10", seconds: float = 1.2) -> str:
    """The input options of ffmpeg for its moving test pattern."""
    return f"-f lavfi -i testsrc2=size={size}:rate={rate}:duration={seconds}"


def list_files() -> dict[str, str]:
    """The options with which ffmpeg writes each file, by name."""
    files: dict[str, str] = {}

    def add(name: str, options: str, source: str | None = None) -> None:
        files[name] = f"{source or pattern()} {options}"

    for pixel_format in _PIXEL_FORMATS.split():
        add(f"h264_{pixel_format}.mp4", f"-c:v libx264 -pix_fmt {pixel_format}")
    for matrix, name in _MATRICES.items():
        scale = f"scale=out_color_matrix={'bt2020' if matrix == 'bt2020nc' else matrix}"
        add(f"matrix_{name}.mp4", f"{_H264} -vf {scale} -colorspace {matrix}")
    for suffix in ("mp4", "mkv", "mov", "ts"):
        add(f"range_full.{suffix}", f"{_H264} -vf scale=out_range=pc -color_range pc")
    for code, siting in enumerate(_SITINGS):
        add(f"chroma_{siting}.mp4", f"{_H264} -x264-params chromaloc={code}")
    for codec, pixel_format, suffix in (entry.split() for entry in _CODECS.split(";")):
        fast = {"libsvtav1": " -preset 8", "libaom-av1": " -cpu-used 8"}.get(codec, "")
        add(f"{codec}_{pixel_format}.{suffix}", f"-c:v {codec} -pix_fmt {pixel_format}{fast}")
    for codec, suffix in (("mpeg2video", "mpg"), ("mpeg1video", "mpg"), ("mpeg2video", "ts")):
        add(f"{codec}.{suffix}", f"-c:v {codec} -pix_fmt yuv420p", pattern(rate="25"))
    add("dnxhd.mxf", "-c:v dnxhd -pix_fmt yuv422p -b:v 120M", pattern("1920x1080", "25", 0.2))
    add("h263p.3gp", "-c:v h263p -pix_fmt yuv420p", pattern("176x144", "30000/1001"))
    for rate in ("24000/1001", "30000/1001", "15", "12.5", "60", "1", "120", "7"):
        add(f"rate_{rate.replace('/', '_')}.mp4", _H264, pattern(rate=rate, seconds=2))
    for rate in ("24000/1001", "30000/1001", "60"):
        add(f"rate_{rate.replace('/', '_')}.mkv", _H264, pattern(rate=rate, seconds=2))
    for ratio in ("4/3", "3/4", "64/45", "2/1", "10/11"):
        add(f"pixels_{ratio.replace('/', '_')}.mp4", f"{_H264} -vf setsar={ratio}")
    add("pixels_4_3.mkv", f"{_H264} -vf setsar=4/3")
    add("pixels_4_3.webm", "-c:v libvpx-vp9 -pix_fmt yuv420p -vf setsar=4/3")
    add("pixels_12_11.avi", "-c:v mpeg4 -vf setsar=12/11")
    add("pixels_16_11.ts", "-c:v mpeg2video -vf setdar=16/9", pattern(rate="25"))
    for suffix in ("mp4", "mkv", "webm", "mov", "ts"):
        codec = "-c:v libvpx-vp9 -pix_fmt yuv420p" if suffix == "webm" else _H264
        add(f"variable_drop.{suffix}", f"{codec} {_DROP}", pattern(rate="30", seconds=2))
    clock = "-vsync vfr -video_track_timescale 90000"
    add("variable_jitter.mp4", f"{_H264} -vf setpts='PTS+0.2*sin(N)/TB/30' {clock}", pattern(rate="30", seconds=2))
    slow = "setpts='if(lt(N,10),N,10+(N-10)*4)/30/TB'"
    add("variable_slow.mp4", f"{_H264} -vf {slow} {clock}", pattern(rate="30", seconds=1))
    for size in ("33x47", "2x2", "1280x8", "161x97", "640x352"):
        add(f"size_{size}.mkv", "-c:v ffv1 -pix_fmt yuv444p", pattern(size, seconds=0.5))
    add("size_161x97.mp4", "-c:v libx264 -pix_fmt yuv444p", pattern("161x97"))
    add("edit_list.mp4", f"{_H264} -bf 3 -ss 0.35", pattern(rate="30", seconds=2))
    add("negative_times.mp4", f"{_H264} -bf 3 -movflags negative_cts_offsets", pattern(rate="30", seconds=1))
    add("late_start.ts", f"{_H264} -bf 2 -output_ts_offset 37", pattern(rate="25"))
    add("late_start.mkv", f"{_H264} -output_ts_offset 5", pattern(rate="25"))
    add("fragments.mp4", f"{_H264} -movflags frag_keyframe+empty_moov")
    add("audio.mp4", f"-f lavfi -i sine=duration=1.2 {_H264} -c:a aac -shortest")
    add("interlaced_tff.mp4", f"{_H264} -flags +ildct+ilme -vf tinterlace=4,setfield=tff", pattern(rate="20"))
    add("interlaced_bff.mp4", f"{_H264} -flags +ildct+ilme -x264-params bff=1 -vf tinterlace=5", pattern(rate="20"))
    add("telecined.mp4", f"{_H264} -flags +ildct+ilme -vf telecine", pattern(rate="24"))
    add("alpha_vp8.webm", f"-c:v libvpx -auto-alt-ref 0 -pix_fmt yuva420p -vf format=yuva420p,{_TRANSPARENT}")
    add("alpha_vp9.webm", f"-c:v libvpx-vp9 -pix_fmt yuva420p -vf format=yuva420p,{_TRANSPARENT}")
    add("alpha_prores.mov", f"-c:v prores_ks -pix_fmt yuva444p10le -vf format=yuva444p,{_TRANSPARENT}")
    add("alpha_ffv1.mkv", f"-c:v ffv1 -pix_fmt yuva444p -vf format=yuva444p,{_TRANSPARENT}")
    add("alpha_png.mov", "-c:v png -vf format=rgba,geq=r='r(X,Y)':g='g(X,Y)':b='b(X,Y)':a='if(lt(X,80),0,255)'")
    add("animation.gif", _PALETTE)
    add("animation.apng", "-f apng -plays 0")
    add("animation_apng.png", "-f apng -plays 0")
    add("animation.webp", "-c:v libwebp_anim -lossless 1")
    add("gif_named.mp4", f"{_PALETTE} -f gif")
    add("mp4_named.gif", f"{_H264} -f mp4")
    add("still_named.mp4", "-frames:v 1 -f image2 -c:v png -update 1")
    bt2020 = "-c:v libx265 -pix_fmt yuv420p10le -vf scale=out_color_matrix=bt2020 -color_primaries bt2020"
    add("hdr_pq.mp4", f"{bt2020} -color_trc smpte2084 -colorspace bt2020nc")
    add("hdr_hlg.mp4", f"{bt2020} -color_trc arib-std-b67 -colorspace bt2020nc")
    two = f"{_H264} -map 0:v -map 1:v -disposition:v:%d 0 -disposition:v:%d default"
    add("second_stream_default.mkv", two % (0, 1), f"{pattern('64x64')} {pattern()}")
    add("first_stream_default.mp4", two % (1, 0), f"{pattern()} {pattern('64x64')}")
    cover = "-map 0:v -map 1:v -map 2:v -c:v:2 mjpeg -disposition:v:2 attached_pic -disposition:v:1 default"
    three = f"{pattern('64x64')} {pattern()} -f lavfi -i testsrc2=size=640x640:duration=0.04"
    add("three_streams_cover.mp4", f"{_H264} {cover} -disposition:v:0 0", three)
    for degrees in (90, 180, 270):
        add(f"rotated_{degrees}.mp4", f"-c copy -metadata:s:v:0 rotate={degrees}", "-i h264_yuv420p.mp4")
    return files


def make_files(folder: Path) -> dict[str, str]:
    """Write the files that are not in the folder yet; returns those that ffmpeg cannot write, and why."""
    failed = {}
    for name, options in list_files().items():
        if (folder / name).exists():
            continue
        command = ["ffmpeg", "-v", "error", "-y", *options.split(), name]
        process = subprocess.run(command, cwd=folder, capture_output=True, text=True, errors="replace")
        if process.returncode:
            failed[name] = (process.stderr.strip().splitlines() or ["no message"])[-1]
            (folder / name).unlink(missing_ok=True)
    return failed
