//! Claims, budgets, sessions and the fleet, on Redis.
