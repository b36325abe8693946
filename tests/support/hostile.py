"""Messages that no honest client sends, drawn from a seed: with the good secret, so that they get past it."""

from __future__ import annotations

from collections.abc import Iterator
from random import Random

from zmqraft.protocol import encode_uint

#: What peers say to each other.
PEER_TYPES = (b"?", b"+", b"$", b"zmqraft.snapshot", b"zmqraft.transfer", b"zmqraft.commit")
CLIENT_TYPES = (b"=", b"&", b"<", b"^", b"%", b"*", b"W", b"zmqraft", b"zmqraft.member")
TYPES = (*PEER_TYPES, *CLIENT_TYPES, b"Z", b"ZZ", b"\0", b"\xff" * 300)
HUGE_INTEGERS = (b"\xff" * 8, b"\0" * 7 + b"\x20", b"\xff" * 9, encode_uint(2**53 - 1), b"", b"\0" * 100)
BROKEN_MESSAGEPACK = (
    b"",
    b"\xc1",
    b"\x92\xa1",
    b"\xdd\xff\xff\xff\xff",
    b"\xdf\xff\xff\xff\xff",
    b"\xc6\xff\xff\xff\xff",
    b"\x81\xc0",
    b"\x91" * 100_000,
    b"\xa4\xff\xfe\xfd\xfc",
    b"\xd4\x7f\0",
    b"\x82\xa3old\x90\xa3new\x90",
)


def hostile_messages(seed: int, count: int, secret: bytes, members: tuple[bytes, ...] = ()) -> Iterator[list[bytes]]:
    """``count`` messages as a DEALER sends them: message id, type, secret, and whatever comes to mind.

    What would be a legal vote request or append of one of ``members`` is not among them.
    """
    random = Random(seed)
    for _ in range(count):
        message_id = random.randbytes(random.choice((0, 1, 1, 2, 3, 3, 4, 5, 11, 12, 12, 13, 200)))
        message_type = random.choice(TYPES)
        message = [message_id, message_type, secret]
        if random.random() < 0.05:
            message = message[: random.randint(1, 2)]
        elif random.random() < 0.05:
            message[2] = random.choice((b"", secret[:-1], secret + b"x", random.randbytes(1000)))
        for _ in range(random.choice((0, 1, 2, 3, 4, 5, 6, 7, 8, 20))):
            message.append(hostile_frame(random))
        if len(message) > 3 and message_type in PEER_TYPES and message[3] in members:
            message[3] += b"?"
        yield message


def hostile_frame(random: Random) -> bytes:
    """One frame that may be anything."""
    kind = random.randrange(6)
    if kind == 0:
        return random.choice(HUGE_INTEGERS)
    if kind == 1:
        return random.choice(BROKEN_MESSAGEPACK)
    if kind == 2:
        return encode_uint(random.choice((0, 1, 5, 255, 256, 2**32, 2**52)))
    if kind == 3:
        return bytes(random.choice((12, 19, 20)))
    return random.randbytes(random.choice((0, 1, 2, 12, 20, 21, 50, 1000)))
