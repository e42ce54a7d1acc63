use super::parse;

#[test]
fn quantities_are_read_in_thousandths() {
    for (text, thousandths) in [
        ("0", 0),
        ("1", 1000),
        ("100m", 100),
        ("1.5", 1500),
        (".5", 500),
        ("-2", -2000),
        ("1k", 1_000_000),
        ("1Ki", 1_024_000),
        ("1.5Gi", 1_610_612_736_000),
        ("2e3", 2_000_000),
        ("5E-1", 500),
        ("1u", 1),
        ("1n", 1),
        ("3E", 3_000_000_000_000_000_000_000),
    ] {
        assert_eq!(parse(text), Some(thousandths), "{text}");
    }
}

#[test]
fn what_is_no_quantity_is_refused() {
    for text in [
        "", "m", "1x", "1 Gi", "1..2", "--1", "1e", "Ki", "0x10", "1,5", ".",
    ] {
        assert_eq!(parse(text), None, "{text}");
    }
}
