//! Reading the headers of a registry: where it sends us, and how long we are to wait. Pure.

use std::time::Duration;

use jiff::Timestamp;
use kernel::words;
use reqwest::Url;
use signing::ports::RegistryReason;

/// The address that a registry gives as `target` in an answer from `base`, to which it may be relative
/// (RFC 9110, section 10.2.2; RFC 8288, section 3.1).
///
/// # Errors
/// `Malformed` when it is no address, `Redirect` when there is a user in it: we send credentials of our own
/// or none.
pub fn address(target: &str, base: &Url) -> Result<Url, RegistryReason> {
    let url = base
        .join(target)
        .map_err(|_| RegistryReason::Malformed("the registry names an address that is none".to_owned()))?;
    if url.username().is_empty() && url.password().is_none() {
        Ok(url)
    } else {
        Err(RegistryReason::Redirect(
            "an address with a user in it".to_owned(),
        ))
    }
}

/// The address of the next page in `Link` headers (RFC 8288), relative to the page it came with.
///
/// # Errors
/// `Redirect` when it leads to another origin: pages come from the registry itself. Those of [`address`].
pub fn next_page<'a>(
    links: impl IntoIterator<Item = &'a str>,
    page: &Url,
) -> Result<Option<Url>, RegistryReason> {
    for link in links
        .into_iter()
        .flat_map(|value| value.split(",<").flat_map(|part| part.split(", <")))
    {
        let link = link.trim_start_matches('<');
        let Some((target, parameters)) = link.split_once('>') else {
            continue;
        };
        let is_next = parameters.split(';').any(|parameter| {
            let (name, value) = parameter.split_once('=').unwrap_or_default();
            name.trim().eq_ignore_ascii_case("rel")
                && value.trim().trim_matches('"').eq_ignore_ascii_case("next")
        });
        if !is_next {
            continue;
        }
        let next = address(target, page)?;
        if next.origin() != page.origin() {
            return Err(RegistryReason::Redirect(format!(
                "the next page at {}",
                words(next.authority())
            )));
        }
        return Ok(Some(next));
    }
    Ok(None)
}

/// `Retry-After` (RFC 9110, section 10.2.3): seconds, or a date in the future.
pub fn retry_after(value: &str, now: Timestamp) -> Option<Duration> {
    if let Ok(seconds) = value.trim().parse::<u32>() {
        return Some(Duration::from_secs(seconds.into()));
    }
    let date = http_date(value)?;
    Some(Duration::try_from(date.duration_since(now)).unwrap_or(Duration::ZERO))
}

/// A date as HTTP writes it (RFC 9110, section 5.6.7), such as that of the header `Date`.
#[must_use]
pub fn http_date(value: &str) -> Option<Timestamp> {
    Some(jiff::fmt::rfc2822::parse(value.trim()).ok()?.timestamp())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn links_lead_to_the_next_page_of_the_same_registry_only() {
        let page: Url = "https://r.example/v2/a/referrers/sha256:00".parse().unwrap();
        let next = |link: &str| next_page([link], &page);
        assert_eq!(
            next("</v2/a?n=1>; rel=\"next\"").unwrap().unwrap().as_str(),
            "https://r.example/v2/a?n=1"
        );
        assert_eq!(
            next("</p>; rel=prev, </n>; rel=next").unwrap().unwrap().path(),
            "/n"
        );
        assert!(next("</v2/a>; rel=\"prev\"").unwrap().is_none());
        assert!(next("nonsense").unwrap().is_none());
        for foreign in [
            "https://evil.example/",
            "http://r.example/",
            "https://r.example:444/",
            "//evil.example/x",
        ] {
            assert!(next(&format!("<{foreign}>; rel=next")).is_err(), "{foreign}");
        }
    }

    #[test]
    fn an_address_is_relative_or_whole_and_has_no_user() {
        let base: Url = "https://r.example/v2/a/blobs/uploads/".parse().unwrap();
        for (target, want) in [
            ("/v2/a/7", "https://r.example/v2/a/7"),
            ("7?state=x", "https://r.example/v2/a/blobs/uploads/7?state=x"),
            ("https://storage.example/7", "https://storage.example/7"),
        ] {
            assert_eq!(address(target, &base).unwrap().as_str(), want);
        }
        for user in [
            "https://user@r.example/",
            "https://user:password@r.example/",
            "//:password@r.example/",
        ] {
            assert!(
                matches!(address(user, &base), Err(RegistryReason::Redirect(_))),
                "{user}"
            );
            let link = format!("<{user}>; rel=next");
            assert!(next_page([link.as_str()], &base).is_err(), "{user}");
        }
        assert!(matches!(
            address("https://", &base),
            Err(RegistryReason::Malformed(_))
        ));
    }

    #[test]
    fn retry_after_is_seconds_or_a_date() {
        let now: Timestamp = "2015-10-21T07:27:00Z".parse().unwrap();
        assert_eq!(retry_after("120", now), Some(Duration::from_secs(120)));
        assert_eq!(
            retry_after("Wed, 21 Oct 2015 07:28:00 GMT", now),
            Some(Duration::from_secs(60))
        );
        assert_eq!(
            retry_after("Wed, 21 Oct 2015 07:00:00 GMT", now),
            Some(Duration::ZERO)
        );
        for nonsense in ["", "soon", "-1", "99999999999", "1.5"] {
            assert_eq!(retry_after(nonsense, now), None, "{nonsense:?}");
        }
    }
}
