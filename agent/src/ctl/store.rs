//! `-d URL` (cli.md 1.1).

use crate::config::EtcdConfig;

/// Reads `[SCHEME://][HOST][:PORT][/NAMESPACE]`: the store, and the namespace if one is named.
pub(super) fn parse(url: &str) -> Result<(EtcdConfig, Option<String>), String> {
    let (scheme, rest) = url.split_once("://").unwrap_or(("etcd3", url));
    match scheme.to_ascii_lowercase().as_str() {
        "etcd3" => {}
        known @ ("etcd" | "consul" | "zookeeper" | "exhibitor") => {
            return Err(format!("dcs scheme {known} is not supported, only etcd3 is"));
        }
        other => return Err(format!("Unknown dcs scheme: {other}")),
    }
    let (place, namespace) = rest.split_once('/').unwrap_or((rest, ""));
    let place = match place {
        "" => "localhost".to_owned(),
        port if port.starts_with(':') => format!("localhost{port}"),
        host => host.to_owned(),
    };
    let address = EtcdConfig::endpoint(&place)?;
    let namespace = Some(namespace).filter(|namespace| !namespace.is_empty()).map(|text| format!("/{text}"));
    Ok((EtcdConfig::of_endpoint(address), namespace))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn urls_are_read() {
        let cases = [
            ("etcd3://10.99.0.4:2379", "http://10.99.0.4:2379", None),
            ("etcd3://h", "http://h:2379", None),
            ("etcd3://", "http://localhost:2379", None),
            (":4001/", "http://localhost:4001", None),
            ("h/db/pg", "http://h:2379", Some("/db/pg")),
            ("etcd3://[::1]:2379/x", "http://[::1]:2379", Some("/x")),
        ];
        for (url, endpoint, namespace) in cases {
            let (etcd, found) = parse(url).unwrap();
            assert_eq!((etcd.endpoints, found.as_deref()), (vec![endpoint.to_owned()], namespace), "{url}");
        }
        assert_eq!(parse("foo://h").unwrap_err(), "Unknown dcs scheme: foo");
        assert!(parse("etcd://h").unwrap_err().contains("only etcd3"));
        assert!(parse("etcd3://h:x").is_err());
    }
}
