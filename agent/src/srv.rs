//! etcd's members by DNS: SRV records (config.md 2.4 `srv`; etcd documentation, "DNS discovery").

use std::time::Duration;

use hickory_resolver::TokioResolver;
use hickory_resolver::proto::rr::{RData, RecordType};

use crate::config::SrvName;

/// One question may take this long.
const PATIENCE: Duration = Duration::from_secs(5);

/// The services that are asked for, the best first, and the scheme of what they name. The peer's last two,
/// `_etcd-server-ssl` and `_etcd-server`, name ports between servers, which answer no client.
const SERVICES: [(&str, &str); 4] =
    [("_etcd-client-ssl", "https"), ("_etcd-client", "http"), ("_etcd-ssl", "https"), ("_etcd", "http")];

/// URLs of the members that the records of `srv` name, by the system's resolver.
///
/// # Errors
/// That no record was found, and what was asked for.
pub(crate) async fn endpoints(srv: &SrvName) -> Result<Vec<String>, String> {
    let resolver = TokioResolver::builder_tokio().and_then(|builder| builder.build());
    from(&resolver.map_err(|error| format!("cannot read /etc/resolv.conf: {error}"))?, srv).await
}

async fn from(resolver: &TokioResolver, srv: &SrvName) -> Result<Vec<String>, String> {
    let mut failures = Vec::new();
    for (service, scheme) in SERVICES {
        let service = srv.suffix.as_ref().map_or_else(|| service.to_owned(), |suffix| format!("{service}-{suffix}"));
        let name = format!("{service}._tcp.{}.", srv.domain.trim_end_matches('.'));
        let answer = tokio::time::timeout(PATIENCE, resolver.lookup(name.as_str(), RecordType::SRV)).await;
        let answer = match answer {
            Ok(Ok(answer)) => answer,
            Ok(Err(error)) => {
                failures.push(format!("{name}: {error}"));
                continue;
            }
            Err(_) => {
                failures.push(format!("{name}: no answer within {PATIENCE:?}"));
                continue;
            }
        };
        let mut found: Vec<_> = answer
            .answers()
            .iter()
            .filter_map(|record| {
                let RData::SRV(srv) = &record.data else { return None };
                Some((srv.priority, std::cmp::Reverse(srv.weight), srv.target.to_utf8(), srv.port))
            })
            .collect();
        found.sort();
        if !found.is_empty() {
            let url =
                |(_, _, host, port): (_, _, String, u16)| format!("{scheme}://{}:{port}", host.trim_end_matches('.'));
            return Ok(found.into_iter().map(url).collect());
        }
        failures.push(format!("{name}: no record"));
    }
    Err(format!("etcd3.srv: no SRV record names a member of etcd ({})", failures.join("; ")))
}

#[cfg(test)]
mod tests {
    use std::net::{Ipv4Addr, UdpSocket};

    use hickory_resolver::config::{ConnectionConfig, NameServerConfig, ResolverConfig};
    use hickory_resolver::net::runtime::TokioRuntimeProvider;
    use hickory_resolver::proto::op::{Message, MessageType, OpCode, ResponseCode};
    use hickory_resolver::proto::rr::rdata::SRV;
    use hickory_resolver::proto::rr::{Name, Record};

    use super::*;

    /// A name server that knows the records of one name.
    fn name_server(name: &'static str, records: &'static [(u16, u16, u16, &'static str)]) -> u16 {
        let socket = UdpSocket::bind((Ipv4Addr::LOCALHOST, 0)).unwrap();
        let port = socket.local_addr().unwrap().port();
        std::thread::spawn(move || {
            let mut buffer = [0; 1500];
            while let Ok((length, from)) = socket.recv_from(&mut buffer) {
                let question = Message::from_vec(&buffer[..length]).unwrap();
                let asked = question.queries[0].clone();
                let mut answer = Message::new(question.metadata.id, MessageType::Response, OpCode::Query);
                if asked.name().to_utf8() == name {
                    for (priority, weight, port, target) in records {
                        let data = SRV::new(*priority, *weight, *port, Name::from_ascii(target).unwrap());
                        answer.add_answer(Record::from_rdata(asked.name().clone(), 60, RData::SRV(data)));
                    }
                } else {
                    answer.metadata.response_code = ResponseCode::NXDomain;
                }
                answer.add_query(asked);
                socket.send_to(&answer.to_vec().unwrap(), from).unwrap();
            }
        });
        port
    }

    fn ask(port: u16, domain: &str, suffix: Option<&str>) -> Result<Vec<String>, String> {
        let mut connection = ConnectionConfig::udp();
        connection.port = port;
        let server = NameServerConfig::new(Ipv4Addr::LOCALHOST.into(), true, vec![connection]);
        let config = ResolverConfig::from_parts(None, vec![], vec![server]);
        let resolver = TokioResolver::builder_with_config(config, TokioRuntimeProvider::default()).build().unwrap();
        let srv = SrvName { domain: domain.to_owned(), suffix: suffix.map(str::to_owned) };
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
        runtime.block_on(from(&resolver, &srv))
    }

    #[test]
    fn records_name_the_members_the_preferred_ones_first() {
        let port = name_server(
            "_etcd-client._tcp.db.example.",
            &[(20, 1, 2379, "far.example."), (10, 1, 2380, "b.example."), (10, 5, 2379, "a.example.")],
        );
        let found = ask(port, "db.example", None).unwrap();
        assert_eq!(found, ["http://a.example:2379", "http://b.example:2380", "http://far.example:2379"]);
        let none = ask(port, "db.example", Some("blue")).unwrap_err();
        assert!(none.contains("_etcd-client-ssl-blue._tcp.db.example."), "{none}");
    }

    #[test]
    fn ssl_records_mean_https_and_a_suffix_is_appended() {
        let port = name_server("_etcd-client-ssl-blue._tcp.db.example.", &[(0, 0, 2379, "a.example.")]);
        assert_eq!(ask(port, "db.example.", Some("blue")), Ok(vec!["https://a.example:2379".to_owned()]));
    }
}
