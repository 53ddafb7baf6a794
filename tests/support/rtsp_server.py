"""A small RTSP server for tests: loopback only, RTP inside the one TCP connection, one thread.

It sends MPEG-TS (payload type 33) or, as most cameras do, H.264 (type 96), one NAL unit a packet:
a packet inside TCP may have 65,535 bytes, so none needs to be split.
"""

import base64
import socket
import struct
import threading
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path

import av

TIMEOUT_S = 20.0
_TS_PACKET_BYTES, _TS_PACKETS = 188, 7
_CLOCK_HZ = 90_000
_LISTEN = "127.0.0.1"


@dataclass(frozen=True)
class Packet:
    """One RTP payload: its time in 90 kHz and whether its picture ends with it."""

    payload: bytes
    time: int
    is_last: bool


@dataclass(frozen=True)
class Stream:
    """What is played.

    Attributes:
        payload_type, rtp_map: of the session description.
        packets: in order.
        login: `user:password` that the client must give (Basic), None for no login.
        is_silent_at_end: keep the connection and send no more, else say goodbye (RTCP) and close.
    """

    payload_type: int
    rtp_map: str
    packets: tuple[Packet, ...]
    login: str | None = None
    is_silent_at_end: bool = False

    @property
    def description(self) -> str:
        """The session description (SDP)."""
        lines = [
            "v=0",
            f"o=- 1 1 IN IP4 {_LISTEN}",
            "s=test",
            f"c=IN IP4 {_LISTEN}",
            "t=0 0",
            f"m=video 0 RTP/AVP {self.payload_type}",
            f"a=rtpmap:{self.payload_type} {self.rtp_map}",
            "a=control:track1",
        ]
        if self.payload_type == 96:
            lines.append("a=fmtp:96 packetization-mode=1")
        return "\r\n".join([*lines, ""])


def mpeg_ts(path: Path) -> tuple[Packet, ...]:
    """Return the packets of a transport stream, seven of its own packets in each."""
    body, size = path.read_bytes(), _TS_PACKET_BYTES * _TS_PACKETS
    return tuple(
        Packet(body[start : start + size], 100 * number, is_last=True)
        for number, start in enumerate(range(0, len(body), size))
    )


def h264(path: Path) -> tuple[Packet, ...]:
    """Return the packets of the H.264 video in a file, which has no B-frames."""
    packets = []
    with av.open(str(path)) as container:
        stream = container.streams.video[0]
        for coded in container.demux(stream):
            if not coded.size:
                continue
            units = [unit for unit in _nal_units(bytes(coded)) if unit]
            time = int(coded.pts * stream.time_base * _CLOCK_HZ)
            packets += [Packet(u, time, is_last=u is units[-1]) for u in units]
    return tuple(packets)


def _nal_units(annex_b: bytes) -> list[bytes]:
    parts = annex_b.replace(b"\0\0\0\1", b"\0\0\1").split(b"\0\0\1")
    return parts[1:]


@contextmanager
def serving(stream: Stream) -> Iterator[str]:
    """Serve one stream to one client after another; yields `127.0.0.1:<port>`."""
    is_over = threading.Event()
    with socket.create_server((_LISTEN, 0)) as server:
        server.settimeout(0.1)
        thread = threading.Thread(target=_serve, args=(server, stream, is_over))
        thread.start()
        try:
            yield f"{_LISTEN}:{server.getsockname()[1]}"
        finally:
            is_over.set()
            thread.join()


def _serve(server: socket.socket, stream: Stream, is_over: threading.Event) -> None:
    while not is_over.is_set():
        try:
            client, _ = server.accept()
        except TimeoutError:
            continue
        client.settimeout(TIMEOUT_S)
        with client, suppress(OSError):  # the client may go at any time
            _answer(client, stream, is_over)


def _answer(client: socket.socket, stream: Stream, is_over: threading.Event) -> None:
    with client.makefile("rb") as requests:
        while request := _request(requests):
            method, headers = request
            status, more, body = _reply(method, headers, stream)
            lines = [f"RTSP/1.0 {status}", f"CSeq: {headers.get('cseq', '0')}", *more]
            if body:
                lines.append(f"Content-Length: {len(body)}")
            client.sendall("\r\n".join([*lines, "", body]).encode())
            if method == "PLAY" and status == "200 OK":
                _play(client, stream)
                if stream.is_silent_at_end:
                    is_over.wait(TIMEOUT_S)
                return
            if method == "TEARDOWN":
                return


def _request(requests) -> tuple[str, dict[str, str]] | None:
    """Return method and headers, names in lower case, of the next request."""
    first = requests.readline().decode()
    if not first:
        return None
    headers = {}
    while line := requests.readline().decode().strip():
        name, _, value = line.partition(":")
        headers[name.strip().lower()] = value.strip()
    return first.split()[0], headers


def _reply(method: str, headers: dict[str, str], stream: Stream) -> tuple[str, list[str], str]:
    """Return status, headers and body."""
    if method == "OPTIONS":
        return "200 OK", ["Public: OPTIONS, DESCRIBE, SETUP, PLAY, TEARDOWN"], ""
    if stream.login is not None:
        wanted = "Basic " + base64.b64encode(stream.login.encode()).decode()
        if headers.get("authorization") != wanted:
            return "401 Unauthorized", ['WWW-Authenticate: Basic realm="test"'], ""
    if method == "DESCRIBE":
        return "200 OK", ["Content-Type: application/sdp"], stream.description
    if method == "SETUP":
        if "RTP/AVP/TCP" not in headers.get("transport", ""):
            return "461 Unsupported Transport", [], ""
        return "200 OK", ["Transport: RTP/AVP/TCP;unicast;interleaved=0-1", "Session: 7"], ""
    return "200 OK", ["Session: 7"], ""


def _play(client: socket.socket, stream: Stream) -> None:
    for number, packet in enumerate(stream.packets):
        kind = stream.payload_type | (packet.is_last << 7)
        header = struct.pack(">BBHII", 0x80, kind, number & 0xFFFF, packet.time, 1)
        _send(client, 0, header + packet.payload)
    if not stream.is_silent_at_end:
        _send(client, 1, struct.pack(">BBHIBBHI", 0x80, 201, 1, 1, 0x81, 203, 1, 1))


def _send(client: socket.socket, channel: int, packet: bytes) -> None:
    client.sendall(struct.pack(">BBH", 0x24, channel, len(packet)) + packet)
