"""Attacks on the lease of a run directory in an object store: whatever it says, it ends, and can be taken over."""

from attacks.attack import Attack
from attacks.sealing import as_json

LEASE = "a JSON object with `owner` (a random text), `holder` (the process), `seconds` and `renewals`."
GOOD = {"owner": "0123456789abcdef", "holder": "process 1 on host", "renewals": 3, "seconds": 60.0}


def of_lease(text):
    """Return the text of a lease, which may be JSON data."""
    return Attack({".json": text if isinstance(text, bytes) else as_json(text)}, LEASE, error="", works=("all",))


ATTACKS = {
    "good": of_lease(GOOD),
    "no-bytes": of_lease(b""),
    "no-json": of_lease(b"{"),
    "no-utf-8": of_lease(b'{"owner":"\xff","holder":"","renewals":0,"seconds":1}'),
    "list": of_lease(b"[]"),
    "brackets": of_lease(b"[" * 3000),
    "surrogate": of_lease(b'{"owner":"\\ud800","holder":"","renewals":0,"seconds":1}'),
    "without-an-owner": of_lease({"holder": "me", "renewals": 0, "seconds": 1}),
    "seconds-of-text": of_lease(GOOD | {"seconds": "long"}),
    "seconds-below-zero": of_lease(GOOD | {"seconds": -1e308}),
    "seconds-of-a-lifetime": of_lease(GOOD | {"seconds": 1e300}),
    "seconds-of-400-digits": of_lease(b'{"owner":"","holder":"","renewals":0,"seconds":1' + b"0" * 400 + b"}"),
    "seconds-that-are-nan": of_lease(b'{"owner":"","holder":"","renewals":0,"seconds":NaN}'),
    "renewals-below-zero": of_lease(GOOD | {"renewals": -(2**63)}),
    "renewals-of-70-bits": of_lease(GOOD | {"renewals": 2**70}),
    "holder-of-control-characters": of_lease(GOOD | {"holder": "\x1b[2J\r\n"}),
    "unknown-keys": of_lease(GOOD | {"more": [1]}),
}
