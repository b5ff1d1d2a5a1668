//! `restapi.ciphers`: an OpenSSL cipher list (OpenSSL documentation, "openssl-ciphers"), as far as it means suites there are.

use rustls::SupportedCipherSuite;
use rustls::crypto::ring::ALL_CIPHER_SUITES;

use super::section::{Report, Section};

/// The words by which a list may mean a suite of TLS 1.2; the first is its name. A list says nothing about TLS 1.3.
fn words(suite: &SupportedCipherSuite) -> Option<Vec<String>> {
    // TLS_ECDHE_RSA_WITH_AES_256_GCM_SHA384 is ECDHE-RSA-AES256-GCM-SHA384 there.
    let name = suite.suite().as_str()?.strip_prefix("TLS_")?.to_owned();
    let (exchange, cipher) = name.split_once("_WITH_")?;
    let (_, signature) = exchange.split_once('_')?;
    let chacha = cipher.starts_with("CHACHA20");
    let cipher = if chacha { "CHACHA20_POLY1305".to_owned() } else { cipher.replacen("AES_", "AES", 1) };
    let mut words = vec![format!("{exchange}_{cipher}").replace('_', "-")];
    let also = ["ALL", "DEFAULT", "HIGH", "TLSv1.2", "ECDHE", "EECDH", "kECDHE", "kEECDH"];
    words.extend(also.map(str::to_owned));
    words.push(format!("a{signature}"));
    if signature == "ECDSA" {
        words.push(signature.to_owned());
    }
    if chacha {
        words.push("CHACHA20".to_owned());
    } else {
        words.extend(["AES", "AESGCM"].map(str::to_owned));
        words.extend(cipher.split('_').next().map(str::to_owned));
    }
    Some(words)
}

/// The suites that a list leaves, in its order, those of TLS 1.3 before them; and whether it means any of the others.
fn select(list: &str) -> (Vec<SupportedCipherSuite>, bool) {
    let (newest, known): (Vec<_>, Vec<_>) = ALL_CIPHER_SUITES.iter().partition(|suite| words(suite).is_none());
    let mut chosen: Vec<SupportedCipherSuite> = Vec::new();
    let mut never: Vec<SupportedCipherSuite> = Vec::new();
    for item in list.split([':', ',', ' ', ';']).filter(|item| !item.is_empty() && !item.starts_with('@')) {
        let (sign, wanted) = match item.split_at_checked(1) {
            Some((sign @ ("!" | "-" | "+"), wanted)) => (sign, wanted),
            Some(_) | None => ("", item),
        };
        let means = |suite: &SupportedCipherSuite| {
            let words = words(suite).unwrap_or_default();
            wanted.split('+').all(|word| words.iter().any(|known| known == word))
        };
        match sign {
            "!" => {
                never.extend(known.iter().filter(|suite| means(suite)));
                chosen.retain(|suite| !means(suite));
            }
            "-" => chosen.retain(|suite| !means(suite)),
            "+" => chosen.sort_by_key(|suite| means(suite)),
            _ => {
                let new =
                    known.iter().filter(|suite| means(suite) && !never.contains(suite) && !chosen.contains(suite));
                let new: Vec<_> = new.copied().collect();
                chosen.extend(new);
            }
        }
    }
    let any = !chosen.is_empty();
    (newest.into_iter().chain(chosen).collect(), any)
}

/// Reads the key; a list that means none of the suites there are leaves TLS 1.3, and that is a warning.
pub(super) fn read(rest: &Section<'_>, report: &mut Report) -> Option<Vec<SupportedCipherSuite>> {
    let list = rest.text("ciphers", report)?;
    let (suites, any) = select(&list);
    if let Some(node) = rest.get("ciphers").filter(|_| !any) {
        let names: Vec<_> = ALL_CIPHER_SUITES.iter().filter_map(|suite| words(suite)?.into_iter().next()).collect();
        let what = format!("leaves nothing but TLS 1.3; of TLS 1.2 there are {}", names.join(" "));
        report.warn(&node.at, &rest.path_of("ciphers"), what);
    }
    Some(suites)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn chosen(list: &str) -> Vec<String> {
        let (suites, any) = select(list);
        let names: Vec<_> = suites.iter().filter_map(|suite| words(suite)?.into_iter().next()).collect();
        assert_eq!((any, suites.len()), (!names.is_empty(), names.len() + 3), "TLS 1.3 always stays");
        names
    }

    #[test]
    fn lists_are_openssls() {
        let (e2, e1) = ("ECDHE-ECDSA-AES256-GCM-SHA384", "ECDHE-ECDSA-AES128-GCM-SHA256");
        let (r2, r1) = ("ECDHE-RSA-AES256-GCM-SHA384", "ECDHE-RSA-AES128-GCM-SHA256");
        let (ec, rc) = ("ECDHE-ECDSA-CHACHA20-POLY1305", "ECDHE-RSA-CHACHA20-POLY1305");
        assert_eq!(chosen("HIGH").len(), 6);
        assert_eq!(chosen(&format!("{r1}:{e2}")), [r1, e2]);
        assert_eq!(chosen("ECDHE+AESGCM:ECDHE+CHACHA20:!aNULL:!MD5"), [e2, e1, r2, r1, ec, rc]);
        assert_eq!(chosen("HIGH:!aRSA:-AES128:@STRENGTH"), [e2, ec]);
        assert_eq!(chosen("!AES:ALL:+aECDSA"), [rc, ec]);
        assert_eq!(chosen("AES128 -aECDSA"), [r1]);
        assert_eq!(chosen("AES256-SHA:RC4"), [""; 0]);
    }
}
