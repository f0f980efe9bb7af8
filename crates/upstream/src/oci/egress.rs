//! Which addresses may be called.
//!
//! The registry that a reference names may be anywhere except at a link-local address, where cloud
//! metadata services listen. Where a registry sends us next (redirects, upload locations, token realms)
//! must be public, or the same kind of place as the registry itself. The rule is applied to addresses after
//! name resolution, in the resolver that the connection uses, so a name cannot change its mind in between.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};
use std::sync::{Arc, Mutex, PoisonError};

use reqwest::Url;
use reqwest::dns::{Addrs, Name, Resolve, Resolving};

/// What kind of place an address is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Place {
    Public,
    /// RFC 1918, RFC 6598 (shared), RFC 4193 (unique local).
    Private,
    /// RFC 1122 loopback, and the unspecified address, which reaches it.
    Loopback,
    /// Link-local (RFC 3927, RFC 4291), cloud metadata, multicast, broadcast: never called.
    Forbidden,
}

/// The metadata service of AWS over IPv6 lies in the unique local range.
const METADATA_V6: Ipv6Addr = Ipv6Addr::new(0xfd00, 0xec2, 0, 0, 0, 0, 0, 0x254);
/// Metadata services outside the link-local range: Alibaba Cloud, Azure, Oracle Cloud.
const METADATA_V4: [Ipv4Addr; 3] = [
    Ipv4Addr::new(100, 100, 100, 200),
    Ipv4Addr::new(168, 63, 129, 16),
    Ipv4Addr::new(192, 0, 0, 192),
];

impl Place {
    /// The kind of place of `address`; IPv4 inside IPv6 (mapped, RFC 6052 NAT64, RFC 3056 6to4, and the deprecated
    /// compatible form of RFC 4291) counts as what it reaches.
    pub fn of(address: IpAddr) -> Self {
        match address.to_canonical() {
            IpAddr::V4(v4) => Self::of_v4(v4),
            IpAddr::V6(v6) => match v6.segments() {
                [0x64, 0xff9b, 0, 0, 0, 0, high, low] | [0x2002, high, low, ..] => {
                    Self::of_v4(v4_of(high, low))
                }
                [0, 0, 0, 0, 0, 0, high, low] if high != 0 => Self::of_v4(v4_of(high, low)),
                // Translation within one network (RFC 8215): whatever it reaches is not public.
                [0x64, 0xff9b, 1, ..] => Self::Private,
                _ => Self::of_v6(v6),
            },
        }
    }

    fn of_v4(v4: Ipv4Addr) -> Self {
        let [first, second, ..] = v4.octets();
        if v4.is_link_local() || v4.is_multicast() || METADATA_V4.contains(&v4) || first >= 240 {
            Self::Forbidden
        } else if v4.is_loopback() || first == 0 {
            Self::Loopback
        } else if v4.is_private() || (first == 100 && second & 0xc0 == 64) {
            Self::Private
        } else {
            Self::Public
        }
    }

    fn of_v6(v6: Ipv6Addr) -> Self {
        if v6.is_unicast_link_local() || v6.is_multicast() || v6 == METADATA_V6 {
            Self::Forbidden
        } else if v6.is_loopback() || v6.is_unspecified() {
            Self::Loopback
        } else if v6.is_unique_local() {
            Self::Private
        } else {
            Self::Public
        }
    }

    /// Whether a registry at `self` may send us to `target`.
    pub fn may_send_to(self, target: Self) -> bool {
        target != Self::Forbidden && (target == Self::Public || target == self)
    }
}

fn v4_of(high: u16, low: u16) -> Ipv4Addr {
    let ([a, b], [c, d]) = (high.to_be_bytes(), low.to_be_bytes());
    Ipv4Addr::new(a, b, c, d)
}

/// The address that a URL's host is, if it is one and no name.
pub fn literal(url: &Url) -> Option<IpAddr> {
    url.host_str()?
        .trim_start_matches('[')
        .trim_end_matches(']')
        .parse()
        .ok()
}

/// Whether a URL's host means this machine by itself: a loopback address or `localhost` (RFC 6761).
pub fn is_loopback(url: &Url) -> bool {
    match literal(url) {
        Some(address) => Place::of(address) == Place::Loopback,
        None => url
            .host_str()
            .is_some_and(|host| host == "localhost" || host.ends_with(".localhost")),
    }
}

/// An address that may not be called.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum Refused {
    #[error("{host} is at a link-local, metadata or multicast address, which is never called")]
    Registry { host: String },
    #[error("{host} is at a loopback, private or link-local address and the registry is not")]
    Target { host: String },
    #[error("{host} is not at a loopback address, and plain HTTP is only for loopback")]
    NotLoopback { host: String },
}

/// Where the registry itself was last found, for the rule about where it may send us.
#[derive(Debug)]
pub struct Home {
    place: Mutex<Place>,
    /// Plain HTTP was chosen only because the name means loopback: then it must be there.
    loopback_only: bool,
}

impl Home {
    pub fn new(origin: &Url, loopback_only: bool) -> Self {
        let place = match literal(origin) {
            Some(address) => Place::of(address),
            // Until the name is resolved, the strictest.
            None => Place::Public,
        };
        Self {
            place: Mutex::new(place),
            loopback_only,
        }
    }

    pub fn place(&self) -> Place {
        *self.place.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// The rule for the registry itself, and a note of where it is.
    fn admit(&self, host: &str, addresses: Vec<SocketAddr>) -> Result<Vec<SocketAddr>, Refused> {
        let allowed: Vec<_> = addresses
            .into_iter()
            .filter(|address| Place::of(address.ip()) != Place::Forbidden)
            .collect();
        let Some(first) = allowed.first() else {
            return Err(Refused::Registry {
                host: host.to_owned(),
            });
        };
        let place = Place::of(first.ip());
        if self.loopback_only
            && allowed
                .iter()
                .any(|address| Place::of(address.ip()) != Place::Loopback)
        {
            return Err(Refused::NotLoopback {
                host: host.to_owned(),
            });
        }
        *self.place.lock().unwrap_or_else(PoisonError::into_inner) = place;
        Ok(allowed)
    }

    /// The rule for where the registry sends us.
    fn admit_target(&self, host: &str, addresses: Vec<SocketAddr>) -> Result<Vec<SocketAddr>, Refused> {
        let home = self.place();
        let allowed: Vec<_> = addresses
            .into_iter()
            .filter(|address| home.may_send_to(Place::of(address.ip())))
            .collect();
        if allowed.is_empty() {
            Err(Refused::Target {
                host: host.to_owned(),
            })
        } else {
            Ok(allowed)
        }
    }

    /// Checks a URL whose host is an address: those never reach a resolver.
    pub fn check_target(&self, url: &Url) -> Result<(), Refused> {
        match literal(url) {
            Some(address) => self
                .admit_target(url.authority(), vec![(address, 0).into()])
                .map(drop),
            None => Ok(()),
        }
    }
}

/// Resolves the registry's own name.
pub struct HomeResolver(pub Arc<Home>);

/// Resolves names that the registry sends us to.
pub struct TargetResolver(pub Arc<Home>);

type Rule = fn(&Home, &str, Vec<SocketAddr>) -> Result<Vec<SocketAddr>, Refused>;

impl Resolve for HomeResolver {
    fn resolve(&self, name: Name) -> Resolving {
        resolve(Arc::clone(&self.0), name, Home::admit)
    }
}

impl Resolve for TargetResolver {
    fn resolve(&self, name: Name) -> Resolving {
        resolve(Arc::clone(&self.0), name, Home::admit_target)
    }
}

fn resolve(home: Arc<Home>, name: Name, rule: Rule) -> Resolving {
    Box::pin(async move {
        let found: Vec<_> = tokio::net::lookup_host((name.as_str(), 0)).await?.collect();
        let allowed = rule(&home, name.as_str(), found)?;
        Ok(Box::new(allowed.into_iter()) as Addrs)
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn t25_every_kind_of_address_is_known() {
        use Place::{Forbidden, Loopback, Private, Public};
        let table = [
            ("8.8.8.8", Public),
            ("2606:4700::1", Public),
            ("172.32.0.1", Public),
            ("100.128.0.1", Public),
            ("10.1.2.3", Private),
            ("172.16.0.1", Private),
            ("192.168.1.1", Private),
            ("100.64.0.1", Private),
            ("fd12::1", Private),
            ("::ffff:10.0.0.1", Private),
            ("64:ff9b::a00:1", Private),
            ("127.0.0.1", Loopback),
            ("127.9.9.9", Loopback),
            ("0.0.0.0", Loopback),
            ("::1", Loopback),
            ("::", Loopback),
            ("::ffff:127.0.0.1", Loopback),
            ("64:ff9b::7f00:1", Loopback),
            ("169.254.169.254", Forbidden),
            ("fe80::1", Forbidden),
            ("fd00:ec2::254", Forbidden),
            ("100.100.100.200", Forbidden),
            ("224.0.0.1", Forbidden),
            ("255.255.255.255", Forbidden),
            ("::ffff:169.254.169.254", Forbidden),
            ("64:ff9b::a9fe:a9fe", Forbidden),
            ("168.63.129.16", Forbidden),
            ("192.0.0.192", Forbidden),
            ("2002:a9fe:a9fe::1", Forbidden),
            ("2002:7f00:1::1", Loopback),
            ("2002:808:808::1", Public),
            ("64:ff9b:1::808:808", Private),
            ("::7f00:1", Loopback),
            ("ff02::1", Forbidden),
        ];
        for (text, want) in table {
            assert_eq!(Place::of(text.parse().unwrap()), want, "{text}");
        }
    }

    #[test]
    fn t25_a_registry_sends_us_only_to_public_places_or_its_own_kind() {
        use Place::{Forbidden, Loopback, Private, Public};
        for home in [Public, Private, Loopback] {
            for target in [Public, Private, Loopback, Forbidden] {
                let want = target == Public || (target == home && target != Forbidden);
                assert_eq!(home.may_send_to(target), want, "{home:?} to {target:?}");
            }
        }
    }

    #[test]
    fn t25_a_public_name_that_resolves_to_private_addresses_is_refused_as_a_target() {
        let origin: Url = "https://registry.example/".parse().unwrap();
        let home = Home::new(&origin, false);
        let at = |text: &str| SocketAddr::new(text.parse().unwrap(), 443);
        assert_eq!(
            home.admit("registry.example", vec![at("198.51.100.7")])
                .unwrap()
                .len(),
            1
        );
        for private in ["10.0.0.1", "127.0.0.1", "169.254.169.254", "::1", "fd00::1"] {
            assert!(
                home.admit_target("storage.example", vec![at(private)]).is_err(),
                "{private}"
            );
            let url: Url = format!("https://{}/x", at(private)).parse().unwrap();
            assert!(home.check_target(&url).is_err(), "{private} as a literal");
        }
        let mixed = home
            .admit_target("storage.example", vec![at("10.0.0.1"), at("198.51.100.8")])
            .unwrap();
        assert_eq!(mixed, [at("198.51.100.8")], "only the public address is used");
        assert!(
            home.admit("registry.example", vec![at("169.254.169.254")])
                .is_err()
        );
    }

    #[test]
    fn spellings_of_loopback_are_recognised() {
        for text in [
            "http://127.0.0.1:5000",
            "http://[::1]:5000",
            "http://2130706433:1",
            "http://localhost:1",
            "http://a.localhost",
        ] {
            assert!(is_loopback(&text.parse().unwrap()), "{text}");
        }
        for text in [
            "http://registry.example",
            "http://localhost.example",
            "http://10.0.0.1",
        ] {
            assert!(!is_loopback(&text.parse().unwrap()), "{text}");
        }
    }

    #[test]
    fn localhost_by_plain_http_must_really_be_here() {
        let home = Home::new(&"http://localhost:5000/".parse().unwrap(), true);
        assert!(
            home.admit("localhost", vec!["127.0.0.1:1".parse().unwrap()])
                .is_ok()
        );
        assert!(
            home.admit("localhost", vec!["10.0.0.1:1".parse().unwrap()])
                .is_err()
        );
    }
}
