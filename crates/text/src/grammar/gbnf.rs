pub fn is_gbnf(text: &str) -> bool {
    text.contains("::=")
}
pub fn to_lark(_: &str) -> Result<String, String> {
    Err("gbnf".into())
}
