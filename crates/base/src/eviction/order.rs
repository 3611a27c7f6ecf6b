use std::fmt;
use std::str::FromStr;

/// What goes first among chunks that no waiting request wants.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Order {
    /// What came first. In tiers below memory a conversation counts as a whole, from its beginning on, as sessions do in
    /// AttentionStore.
    Fifo,
    /// What was used longest ago.
    Lru,
    /// What is expected to return least for the time for which it is held: what classes are worth is learnt.
    #[default]
    Returns,
}

impl fmt::Display for Order {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(match self {
            Order::Fifo => "fifo",
            Order::Lru => "lru",
            Order::Returns => "returns",
        })
    }
}

impl FromStr for Order {
    type Err = String;

    fn from_str(text: &str) -> Result<Order, String> {
        let all = [Order::Fifo, Order::Lru, Order::Returns];
        all.into_iter().find(|order| order.to_string() == text).ok_or("fifo, lru or returns".into())
    }
}
