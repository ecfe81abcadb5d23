"""The server of `prefixcap serve` under load: captions a second over one-at-a-time captioning (wanted: 3), and memory.

    python benchmarks/serve.py --ckpt runs/demo-transformer/…/checkpoints/best.ckpt
    python benchmarks/serve.py --full-size      # one caption by ViT-B/32 and GPT-2 small with random weights

Clients on loopback each send a picture of the small world, wait for its caption, and send the next; they and the server
share the processors. One at a time is `captioner.caption([file])` in a loop in this process, before and after.
"""

import argparse
import asyncio
import io
import itertools
import json
import os
import re
import subprocess
import sys
import tempfile
import time
from collections import Counter
from pathlib import Path

import numpy as np
import torch
from clip.model import CLIP
from transformers import GPT2Config, GPT2LMHeadModel

import prefixcap
from prefixcap.captioner import Captioner
from prefixcap.demo.drawing import draw
from prefixcap.demo.scenes import random_scene
from prefixcap.encoders import load_encoder
from prefixcap.language import load_language_model

MB = 1 << 20
SERVE = """
import sys
from prefixcap.web.server import serve
most = int(sys.argv[2])
serve(sys.argv[1], port=0, max_queue=most, max_per_client=most)  # all clients have one address
"""


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--ckpt", help="a captioner of the small world")
    parser.add_argument("--clients", type=int, default=50)
    parser.add_argument("--seconds", type=float, default=60)
    parser.add_argument("--queue", type=int, default=64, help="max_queue of the server")
    parser.add_argument("--alone", type=float, default=10, help="seconds of captioning one at a time, before and after")
    parser.add_argument("--full-size", action="store_true")
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory() as temporary:
        if arguments.full_size:
            full_size(Path(temporary))
        else:
            load_test(arguments, Path(temporary))


def load_test(arguments: argparse.Namespace, folder: Path) -> None:
    pictures = small_world(folder, 64)
    captioner = prefixcap.load(arguments.ckpt)
    speeds = [one_at_a_time(captioner, pictures, arguments.alone)]
    with Server(arguments.ckpt, arguments.queue) as server:
        bodies = [request_of(picture) for picture in pictures]
        alone = [asyncio.run(Clients(server, bodies).alone()) for _ in range(10)]
        print(f"one alone       {np.median(alone):9.3f} s for one caption; the first after the start {alone[0]:.3f} s")
        memory = [server.memory()]
        asyncio.run(Clients(server, bodies).run(arguments.clients, 15))  # warms up
        memory.append(server.memory())
        clients = Clients(server, bodies)
        for _ in range(2):
            asyncio.run(clients.run(arguments.clients, arguments.seconds / 2))
            memory.append(server.memory())
    speeds.append(one_at_a_time(captioner, pictures, arguments.alone))
    seconds, total = np.array(clients.seconds), sum(clients.statuses.values())
    speed = len(seconds) / clients.took
    print(f"one at a time   {np.mean(speeds):9.2f} captions a second ({', '.join(f'{speed:.2f}' for speed in speeds)})")
    print(f"served          {speed:9.2f} captions a second, {arguments.clients} clients, {clients.took:.0f} s")
    # The two differ where something else ran on the machine for a part of the time: then neither is to be quoted.
    ratios = ", ".join(f"{speed / single:.2f}" for single in speeds)
    print(f"ratio           {speed / np.mean(speeds):9.2f} wanted 3  (over the one before and the one after: {ratios})")
    errors = total - clients.statuses[200] - clients.statuses[503]
    print(f"answers         {clients.statuses[200]:9d} captions, {clients.statuses[503]} busy, {errors} errors")
    print(f"same            {same(captioner, pictures, clients.captions):9.1%} as captioner.caption gives")
    print("latency         " + ", ".join(f"p{part} {np.percentile(seconds, part):.3f} s" for part in (50, 95, 99)))
    print(
        "memory          "
        + ", ".join(f"{size / MB:.0f} MB" for size in memory)
        + " (started, warmed up, halfway, at the end)"
    )


def full_size(folder: Path) -> None:
    """The seconds of one caption by the architectures of the paper: ViT-B/32, transformer mapper, GPT-2 small."""
    torch.manual_seed(0)
    torch.save(CLIP(512, 224, 12, 768, 32, 77, 49408, 512, 8, 12).state_dict(), folder / "ViT-B-32.pt")
    GPT2LMHeadModel(GPT2Config()).save_pretrained(folder / "gpt2")
    load_language_model("demo").tokenizer.save_pretrained(folder / "gpt2")
    encoder = load_encoder(f"clip:{folder / 'ViT-B-32.pt'}")
    mapper = {"name": "transformer", "prefix_length": 10}
    Captioner(load_language_model(str(folder / "gpt2")), encoder.identity, mapper).save_pretrained(folder / "captioner")
    # Random weights end no caption by themselves; one of COCO has some 12 tokens, and 67 are the most by default.
    with Server(str(folder / "captioner"), 64) as server:
        for tokens in (12, 67):
            clients = Clients(server, [request_of(picture, tokens) for picture in small_world(folder, 3)])
            before = server.processor_time()
            seconds = [asyncio.run(clients.alone()) for _ in range(3)]
            busy = (server.processor_time() - before) / len(seconds)
            print(
                f"full size       {np.median(seconds):9.2f} s for one caption of {tokens} tokens, wanted 10", end="; "
            )
            print(f"{busy:.2f} s of a processor")


def small_world(folder: Path, count: int) -> list[Path]:
    generator = np.random.default_rng(0)
    pictures = [folder / f"{number}.jpg" for number in range(count)]
    for picture in pictures:
        draw(random_scene(generator), generator).save(picture, quality=92)
    return pictures


def one_at_a_time(captioner: Captioner, pictures: list[Path], seconds: float) -> float:
    captioner.caption(pictures[:1])
    start = time.perf_counter()
    for done in itertools.count():
        took = time.perf_counter() - start
        if took > seconds:
            return done / took
        captioner.caption([pictures[done % len(pictures)]])
    raise AssertionError


def same(captioner: Captioner, pictures: list[Path], captions: dict[int, str]) -> float:
    """The share of captions that the captioner itself gives."""
    return float(np.mean([captioner.caption([pictures[number]])[0] == text for number, text in captions.items()]))


def request_of(picture: Path, max_tokens: int = 67) -> bytes:
    body = io.BytesIO()
    body.write(f'--x\r\nContent-Disposition: form-data; name="max_tokens"\r\n\r\n{max_tokens}\r\n'.encode())
    body.write(b'--x\r\nContent-Disposition: form-data; name="images"; filename="a.jpg"\r\n')
    body.write(b"Content-Type: image/jpeg\r\n\r\n" + picture.read_bytes() + b"\r\n--x--\r\n")
    content = body.getvalue()
    head = "POST /v1/caption HTTP/1.1\r\nHost: localhost\r\nContent-Type: multipart/form-data; boundary=x\r\n"
    return f"{head}Content-Length: {len(content)}\r\n\r\n".encode() + content


class Server:
    """`serve` in a process of its own."""

    def __init__(self, checkpoint: str, max_queue: int) -> None:
        command = [sys.executable, "-c", SERVE, checkpoint, str(max_queue)]
        self._process = subprocess.Popen(command, stdout=subprocess.PIPE, text=True)
        assert self._process.stdout is not None
        self.port = int(self._process.stdout.readline().rpartition(":")[2])

    def __enter__(self) -> "Server":
        return self

    def __exit__(self, *_: object) -> None:
        self._process.terminate()
        self._process.wait()

    def memory(self) -> int:
        """Bytes that are resident (Linux)."""
        status = Path(f"/proc/{self._process.pid}/status").read_text()
        match = re.search(r"VmRSS:\s+(\d+) kB", status)
        assert match is not None
        return int(match[1]) * 1024

    def processor_time(self) -> float:
        """Seconds that its threads have run (Linux)."""
        fields = Path(f"/proc/{self._process.pid}/stat").read_text().rpartition(")")[2].split()
        return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")


class Clients:
    """Clients of a server and what they saw: statuses, seconds of each caption, and the captions by picture."""

    def __init__(self, server: Server, requests: list[bytes]) -> None:
        self.server, self.requests = server, requests
        self.statuses, self.seconds, self.captions = Counter[int](), list[float](), dict[int, str]()
        self.took = 0.0
        self._next = itertools.cycle(range(len(requests)))

    async def run(self, count: int, seconds: float) -> None:
        start = time.perf_counter()
        await asyncio.gather(*(self._client(start + seconds) for _ in range(count)))
        self.took += time.perf_counter() - start

    async def alone(self) -> float:
        """Seconds of one request."""
        start = time.perf_counter()
        await self._client(start)
        return time.perf_counter() - start

    async def _client(self, until: float) -> None:
        """Send requests one after another, at least one, until a time."""
        reader, writer = await asyncio.open_connection("127.0.0.1", self.server.port)
        while True:
            picture, start = next(self._next), time.perf_counter()
            writer.write(self.requests[picture])
            head = (await reader.readuntil(b"\r\n\r\n")).decode().lower()
            content = await reader.readexactly(int(head.partition("content-length: ")[2].partition("\r\n")[0]))
            status = int(head.split()[1])
            self.statuses[status] += 1
            if status == 200:
                self.seconds.append(time.perf_counter() - start)
                self.captions[picture] = json.loads(content)["images"][0]["captions"][0]["text"]
            elif status == 503:
                await asyncio.sleep(float(head.partition("retry-after: ")[2].partition("\r\n")[0]))
            if time.perf_counter() >= until:
                writer.close()
                return


if __name__ == "__main__":
    main()
