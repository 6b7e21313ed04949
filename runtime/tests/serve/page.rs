//! The page for browsers: served to anyone, whole in itself, and drawing metrics that exist.

use std::collections::BTreeSet;

use crate::server::Server;

#[test]
fn the_page_needs_no_key_and_nothing_from_elsewhere_and_draws_what_is_measured() {
    let key = format!("ops={}:model:read", "0".repeat(64));
    let server = Server::start(&["--api-key", &key, "--require-authentication"]);
    assert_eq!(server.get("/v1/models").status, 401);

    let page = server.get("/");
    assert_eq!((page.status, page.header("content-type")), (200, Some("text/html; charset=utf-8")));
    let html = page.text();
    // The name of a standard, no address.
    let rest = html.replace("http://www.w3.org/2000/svg", "");
    assert!(!rest.contains("://") && !rest.contains("url("), "it points elsewhere");
    assert!(html.contains("default-src 'none'"), "a policy forbids what is not in the file");

    let metrics = server.get("/metrics").text();
    let known: BTreeSet<_> = metrics.lines().filter_map(|line| line.split([' ', '{']).next()).collect();
    // Where there is no GPU, nothing is said of one.
    let of_gpus = include_str!("../../src/metrics/gpu.rs");
    let of_gpu = |name: &str| {
        let measured = name.trim_end_matches("_count").trim_end_matches("_sum");
        name.starts_with("bitnet_gpu_") && of_gpus.contains(&format!("\"{measured}\""))
    };
    let drawn = html.split('"').filter(|name| name.starts_with("bitnet_") && *name != "bitnet_gpu_");
    let mut count = 0;
    for name in drawn {
        let is_known = known.contains(name) || known.contains(&*format!("{name}_bucket")) || of_gpu(name);
        assert!(is_known, "nothing measures {name}");
        count += 1;
    }
    assert!(count >= 10, "{count} names found");

    for (name, value) in [
        ("content-security-policy", "frame-ancestors 'none'"),
        ("x-frame-options", "DENY"),
        ("x-content-type-options", "nosniff"),
    ] {
        assert_eq!(page.header(name), Some(value));
    }
    for link in html.split("href=\"").skip(1).filter_map(|rest| rest.split_once('"')).map(|(link, _)| link) {
        assert!(link.starts_with("data:") || server.get(link).status == 200, "{link} leads nowhere");
    }

    let mut client = server.connect();
    client.send(b"HEAD / HTTP/1.1\r\nHost: test\r\n\r\n");
    let head = client.head();
    assert_eq!((head.status, head.header("content-length")), (200, Some(&*html.len().to_string())));
    assert_eq!(server.post("/", "{}").status, 405);
}
