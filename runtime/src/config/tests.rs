//! What settings come to.

use super::*;

#[test]
fn flags_go_before_the_file_and_the_file_before_defaults() {
    let path = std::env::temp_dir().join(format!("bitnetd-config-{}.toml", std::process::id()));
    std::fs::write(&path, "port = 1234\nseed = 7\ndeterministic = true\n").unwrap();
    let flags = Settings { port: Some(4321), ..Settings::default() };
    let config = flags.or_file(&path).unwrap().validate().unwrap();
    std::fs::write(&path, "prot = 1\n").unwrap();
    let error = Settings::default().or_file(&path).unwrap_err().to_string();
    std::fs::remove_file(&path).unwrap();
    assert_eq!(
        (config.listen.map(|listen| listen.port()), config.fixed_seed, config.slots_max),
        (Some(4321), Some(7), 100)
    );
    assert!(error.contains("prot"), "{error}");
}

#[test]
fn a_value_out_of_range_names_its_key() {
    let error = Settings { workers: Some(0), ..Settings::default() }.validate().unwrap_err();
    assert_eq!(error.to_string(), "`workers` is `0`, allowed are 1 to 1024");
    let error = Settings { device: Some("tpu".into()), ..Settings::default() }.validate().unwrap_err();
    assert!(error.to_string().contains("auto, cpu and gpu"));
    let kv_type = |name: &str| Settings { kv_cache_type: Some(name.into()), ..Settings::default() }.validate();
    assert_eq!(kv_type("int8").unwrap().kv_type, KvType::Int8);
    assert_eq!(kv_type("q4").unwrap_err().to_string(), "`kv_cache_type` is `q4`, allowed are f16 and int8");
    for bad in [f64::NAN, -0.1, 1.1] {
        assert!(Settings { admission_busy_max: Some(bad), ..Settings::default() }.validate().is_err(), "{bad}");
    }
    let cache = |mb| Settings { kv_cache_mb: Some(mb), ..Settings::default() }.validate();
    assert_eq!(cache(1 << 20).unwrap().kv_bytes_max, Some(1 << 40));
    // In bytes the second is 0 modulo 2^64.
    for bad in [0, 1 << 44, u64::MAX] {
        assert!(cache(bad).unwrap_err().to_string().ends_with("allowed are 1 to 16777216"), "{bad}");
    }
    let gpu = |choice: &str| Settings { gpu: Some(choice.into()), ..Settings::default() }.validate();
    assert_eq!(gpu("2").unwrap().gpu, GpuChoice::Count(2));
    assert!(gpu("0").is_err() && gpu("some").is_err());
    let form = |name: &str| Settings { gpu_prompt_attention: Some(name.into()), ..Settings::default() }.validate();
    assert_eq!(form("tensor").unwrap().gpu_prompt_attention, PromptAttention::Tensor);
    let both = Settings {
        gpu_prompt_attention: Some("tensor".into()),
        kv_cache_type: Some("int8".into()),
        ..Settings::default()
    };
    assert!(both.validate().unwrap_err().to_string().ends_with("allowed are exact where `kv_cache_type` is int8"));
    assert!(form("fast").unwrap_err().to_string().ends_with("allowed are exact and tensor"));
    assert_eq!(Settings::default().validate().unwrap().gpu_prompt_attention, PromptAttention::Exact);
}

#[test]
fn a_unix_socket_closes_the_port_unless_that_is_asked_for() {
    let unix = Settings { listen_unix: Some("/run/s".into()), ..Settings::default() };
    let config = unix.clone().validate().unwrap();
    assert_eq!((config.listen, config.listen_unix), (None, Some(("/run/s".into(), 0o600))));
    let both = Settings { port: Some(1), listen_unix_mode: Some("660".into()), ..unix.clone() }.validate().unwrap();
    assert_eq!((both.listen.map(|at| at.port()), both.listen_unix.map(|unix| unix.1)), (Some(1), Some(0o660)));
    for mode in ["", "8", "1777", "+600", "0o600", "-1"] {
        let error = Settings { listen_unix_mode: Some(mode.into()), ..unix.clone() }.validate().unwrap_err();
        assert!(error.to_string().contains("octal"), "{mode}");
    }
}

#[test]
fn secrets_are_not_repeated() {
    let settings = |secret: &str| Settings { jwt_secret: Some(secret.into()), ..Settings::default() };
    let short = settings("hunter2").validate().unwrap_err().to_string();
    assert!(short.contains("32 bytes") && !short.contains("hunter2"), "{short}");
    let long = settings("hunter2, but much longer than that is");
    assert!(!toml::to_string(&long).unwrap().contains("hunter2"));
    assert!(!format!("{:?}", long.validate().unwrap()).contains("hunter2"));
    let wanted = Settings { require_authentication: Some(true), ..Settings::default() };
    assert!(wanted.clone().validate().is_err());
    let secret = Some("hunter2, but much longer than that is".into());
    assert!(Settings { jwt_secret: secret, ..wanted }.validate().is_ok());
}

#[test]
fn origins_are_off_unless_listed_and_what_is_none_is_named() {
    let origins = |texts: &[&str]| {
        let allowed_origins = Some(texts.iter().map(|text| (*text).to_owned()).collect());
        Settings { allowed_origins, ..Settings::default() }.validate().map(|config| config.origins)
    };
    assert!(Config::standard().origins.is_off() && origins(&[""]).unwrap().is_off());
    assert!(origins(&["https://a.example", "*"]).is_err());
    assert_eq!(origins(&["https://A.example:443"]).unwrap(), origins(&["https://a.example"]).unwrap());
    let error = origins(&["https://a.example/"]).unwrap_err().to_string();
    assert!(error.contains("`allowed_origins` is `https://a.example/`") && error.contains("SCHEME://HOST"), "{error}");
}

#[test]
fn an_older_name_of_a_threshold_is_honoured_and_two_that_differ_are_refused() {
    let busy_max = |settings: Settings| settings.validate().map(|config| config.admission.busy_max);
    let older = Settings { backpressure_threshold: Some(0.5), ..Settings::default() };
    assert_eq!(busy_max(older.clone()).unwrap(), 0.5);
    assert_eq!(busy_max(Settings { admission_busy_max: Some(0.5), ..older.clone() }).unwrap(), 0.5);
    let error = busy_max(Settings { admission_busy_max: Some(0.6), ..older }).unwrap_err().to_string();
    assert!(error.contains("backpressure_threshold") && error.contains("0.6"), "{error}");
    for bad in [f64::NAN, -0.1, 80.0] {
        let error = busy_max(Settings { backpressure_threshold: Some(bad), ..Settings::default() }).unwrap_err();
        assert!(error.to_string().contains("`backpressure_threshold`"), "{error}");
    }
}

#[test]
fn a_time_limit_is_within_the_one_for_the_whole() {
    let limits = |settings: Settings| settings.validate().map(|config| config.time_limits);
    let none = limits(Settings::default()).unwrap();
    assert_eq!((none.queue, none.first_token, none.total.as_secs()), (None, None, 300));
    let some = Settings { queue_timeout_ms: Some(500), first_token_timeout_ms: Some(2000), ..Settings::default() };
    let got = limits(some.clone()).unwrap();
    let ms = Duration::from_millis;
    assert_eq!((got.queue, got.first_token), (Some(ms(500)), Some(ms(2000))));
    let error = limits(Settings { request_timeout: Some(1), ..some }).unwrap_err().to_string();
    assert_eq!(error, "`first_token_timeout_ms` is `2000`, allowed are 1 to 1000");
    assert!(limits(Settings { queue_timeout_ms: Some(0), ..Settings::default() }).is_err());
}
