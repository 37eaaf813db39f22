"""Which network addresses a run may ask: those of one public host, and private ones where that is said."""

from __future__ import annotations

import ipaddress

Address = ipaddress.IPv4Address | ipaddress.IPv6Address

# They hand out a machine's credentials to whoever asks from it; two of them look public.
METADATA = frozenset(
    map(
        ipaddress.ip_address,
        (
            "169.254.169.254",
            "169.254.170.2",
            "fd00:ec2::254",
            "100.100.100.200",
            "168.63.129.16",
            "192.0.0.192",
        ),
    )
)
CARRIER = ipaddress.ip_network("100.64.0.0/10")
PRIVATE_6 = ipaddress.ip_network("fc00::/7")
NAT64 = ipaddress.ip_network("64:ff9b::/96")
DISGUISES = tuple(
    map(ipaddress.ip_network, ("::ffff:0:0/96", "::/96", "2002::/16", "2001::/32", "64:ff9b:1::/48"))
)
"""IPv6 forms of IPv4 addresses: mapped, compatible, 6to4, Teredo, local NAT64. No host needs them."""


def refusal(address: str, allow_private: bool) -> str | None:
    """Why an address may not be asked, or None if it may.

    Loopback, private (RFC 1918, RFC 4193) and carrier (RFC 6598) addresses may be with
    `allow_private`; link-local ones, those of cloud metadata and all that are no single host never.
    """
    try:
        ip = ipaddress.ip_address(address)
    except ValueError:
        return "no address"
    if isinstance(ip, ipaddress.IPv6Address):
        if ip in NAT64:  # how networks without IPv4 reach every IPv4 host
            return refusal(str(ipaddress.IPv4Address(int(ip) & 0xFFFFFFFF)), allow_private)
        if any(ip in form for form in DISGUISES) and not ip.is_loopback and not ip.is_unspecified:
            return "an IPv4 address in disguise"
    if ip in METADATA:
        return "a cloud's metadata service"
    for name in ("link_local", "multicast", "unspecified"):
        if getattr(ip, f"is_{name}"):
            return name.replace("_", "-")
    if ip.is_loopback or ip in CARRIER or _is_private(ip):
        return None if allow_private else "private or loopback (allow_private: true would allow it)"
    return None if ip.is_global and not ip.is_reserved else "reserved"


def _is_private(ip: Address) -> bool:
    if isinstance(ip, ipaddress.IPv6Address):
        return ip in PRIVATE_6 or ip.is_site_local
    return any(
        ip in net for net in map(ipaddress.ip_network, ("10.0.0.0/8", "172.16.0.0/12", "192.168.0.0/16"))
    )
