"""Whether the world can reach the server."""

import ipaddress

from app.serve.settings import Settings


def exposure(host: str, settings: Settings) -> str | None:
    """A warning if everybody who reaches the machine may use the model.

    Args:
        host: the address the server listens on.
        settings: tell whether a key is asked for.
    """
    try:
        near = ipaddress.ip_address(host).is_loopback
    except ValueError:
        near = host == "localhost"
    if near or settings.api_keys or settings.api_keys_file:
        return None
    return (
        f"the server listens on {host} and asks for no key: everybody who reaches this machine can use the model. "
        "Set APP_API_KEYS or APP_API_KEYS_FILE, or listen on 127.0.0.1."
    )
