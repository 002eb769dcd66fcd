//! Network interfaces, and the variables that name them.

use std::collections::{BTreeMap, BTreeSet};
use std::net::Ipv4Addr;

use super::or_ok;
use crate::doctor::catalogue::{NETWORK_APART, NETWORK_NAMED, NETWORK_NONE, NETWORK_SAME_ADDRESS};
use crate::doctor::facts::{Facts, Interface};
use crate::doctor::finding::{Finding, distinct, each, hosts};

/// Variables with lists of interfaces, and how an entry of theirs names one.
const LISTS: [(&str, Naming); 6] = [
    ("OMPI_MCA_btl_tcp_if_include", Naming::NameOrNetwork),
    ("OMPI_MCA_oob_tcp_if_include", Naming::NameOrNetwork),
    ("PRTE_MCA_prte_if_include", Naming::NameOrNetwork),
    ("PMIX_MCA_ptl_base_if_include", Naming::NameOrNetwork),
    ("NCCL_SOCKET_IFNAME", Naming::Prefix),
    ("GLOO_SOCKET_IFNAME", Naming::Name),
];

#[derive(Clone, Copy, PartialEq, Eq)]
enum Naming {
    Name,
    /// `eth0`, or `10.0.0.0/24`.
    NameOrNetwork,
    /// `eth` means all that begin so; `=eth0` just this one; `^docker` all others.
    Prefix,
}

pub fn check(all: &[Facts]) -> Vec<Finding> {
    let mut problems = each(&NETWORK_NAMED, all, misnamed);
    if hosts(all).len() > 1 {
        problems.extend(each(&NETWORK_NONE, all, |facts| {
            usable(facts).next().is_none().then(|| "no interface with an address but loopback".into())
        }));
        problems.extend(same_address(all));
        problems.extend(apart(all));
    }
    or_ok(problems, || Finding::ok("network", distinct(all, describe)))
}

/// What MPI and NCCL choose from by themselves.
fn usable(facts: &Facts) -> impl Iterator<Item = &Interface> {
    facts.network.interfaces.iter().filter(|interface| {
        let has_address = !interface.ipv4.is_empty() || !interface.ipv6.is_empty();
        interface.is_up && !interface.is_loopback && has_address
    })
}

fn describe(facts: &Facts) -> String {
    let text = |interface: &Interface| {
        let addresses = interface.ipv4.iter().map(|(address, prefix)| format!("{address}/{prefix}"));
        let addresses = addresses.chain(interface.ipv6.iter().map(ToString::to_string));
        format!("{} {}", interface.name, addresses.collect::<Vec<_>>().join(" "))
    };
    let up: Vec<String> = usable(facts).map(text).collect();
    let chosen = facts.variable(LISTS[0].0).map(|list| format!("; MPI is told {list}")).unwrap_or_default();
    let rdma = match facts.network.rdma.is_empty() {
        true => String::new(),
        false => format!("; remote memory access: {}", facts.network.rdma.join(" ")),
    };
    match up.is_empty() {
        true => format!("{}: loopback only, which is enough for one host", facts.host),
        false => format!("{}: up: {}{chosen}{rdma}", facts.host, up.join(", ")),
    }
}

/// The first entry of a list that names nothing that is up.
fn misnamed(facts: &Facts) -> Option<String> {
    LISTS.into_iter().find_map(|(name, naming)| {
        let list = facts.variable(name)?;
        let wrong = first_wrong(&list, naming, &facts.network.interfaces)?;
        let here: Vec<&str> = usable(facts).map(|interface| interface.name.as_str()).collect();
        let here = if here.is_empty() { "loopback only".into() } else { here.join(", ") };
        Some(format!("{name}={list}: {wrong} (up with an address: {here})"))
    })
}

fn first_wrong(list: &str, naming: Naming, interfaces: &[Interface]) -> Option<String> {
    let (list, naming) = match naming {
        // What is excluded need not exist.
        Naming::Prefix if list.starts_with('^') => return None,
        Naming::Prefix => list.strip_prefix('=').map_or((list, naming), |exact| (exact, Naming::Name)),
        _ => (list, naming),
    };
    let entries: Vec<&str> = list.split(',').map(str::trim).filter(|entry| !entry.is_empty()).collect();
    let judge = |entry: &&str| verdict(entry, naming, interfaces);
    match naming {
        // NCCL takes what it finds of them.
        Naming::Prefix => {
            let verdicts: Vec<Option<String>> = entries.iter().map(judge).collect();
            verdicts.iter().all(Option::is_some).then(|| verdicts.into_iter().flatten().next()).flatten()
        }
        _ => entries.iter().find_map(judge),
    }
}

/// What is wrong with one entry.
fn verdict(entry: &str, naming: Naming, interfaces: &[Interface]) -> Option<String> {
    let network = entry.split_once('/').and_then(|(network, prefix)| {
        Some((network.parse::<Ipv4Addr>().ok()?, prefix.parse::<u8>().ok().filter(|prefix| *prefix <= 32)?))
    });
    if let (Naming::NameOrNetwork, Some((network, prefix))) = (naming, network) {
        let inside = |interface: &Interface| {
            let mut addresses = interface.ipv4.iter();
            interface.is_up && addresses.any(|(address, _)| mask(*address, prefix) == mask(network, prefix))
        };
        let is_any = interfaces.iter().any(inside);
        return (!is_any).then(|| format!("no interface is in the network {entry}"));
    }
    let matches = |interface: &&Interface| match naming {
        Naming::Prefix => interface.name.starts_with(entry),
        _ => interface.name == entry,
    };
    let named: Vec<&Interface> = interfaces.iter().filter(matches).collect();
    let works = |interface: &&Interface| {
        interface.is_up && (!interface.ipv4.is_empty() || !interface.ipv6.is_empty())
    };
    match named.first() {
        None => Some(format!("there is no interface {entry}")),
        Some(_) if named.iter().any(works) => None,
        Some(interface) => Some(format!("{} is down or has no address", interface.name)),
    }
}

fn mask(address: Ipv4Addr, prefix: u8) -> u32 {
    let bits = u32::from(address);
    bits & u32::MAX.checked_shl(32 - u32::from(prefix.min(32))).unwrap_or(0)
}

/// IPv4 addresses that more than one host has.
fn same_address(all: &[Facts]) -> Vec<Finding> {
    let mut owners = BTreeMap::<Ipv4Addr, Vec<(&Facts, &str)>>::new();
    for ranks in hosts(all).into_values() {
        for interface in usable(ranks[0]) {
            for (address, _) in &interface.ipv4 {
                owners.entry(*address).or_default().push((ranks[0], &interface.name));
            }
        }
    }
    // A list of interfaces is the remedy.
    let told = all.iter().all(|facts| LISTS.iter().any(|(name, _)| facts.variable(name).is_some()));
    let several = owners.into_iter().filter(|(_, owners)| owners.len() > 1 && !told);
    several
        .map(|(address, owners)| {
            let names: Vec<String> =
                owners.iter().take(4).map(|(facts, name)| format!("{name} of {}", facts.host)).collect();
            let ranks = owners.iter().map(|(facts, _)| facts.rank).collect();
            Finding::of(&NETWORK_SAME_ADDRESS, format!("{address} is {}", names.join(" and ")), ranks)
        })
        .collect()
}

/// Whether no network has every host in it; hosts without an address are a finding of their own.
fn apart(all: &[Facts]) -> Option<Finding> {
    let networks = |ranks: Vec<&Facts>| -> BTreeSet<(u32, u8)> {
        let addresses = usable(ranks[0]).flat_map(|interface| &interface.ipv4);
        addresses.map(|(address, prefix)| (mask(*address, *prefix), *prefix)).collect()
    };
    let each: Vec<BTreeSet<(u32, u8)>> = hosts(all).into_values().map(networks).collect();
    let shared = each.iter().skip(1).fold(each[0].clone(), |shared, next| &shared & next);
    (shared.is_empty() && each.iter().all(|networks| !networks.is_empty()))
        .then(|| Finding::of(&NETWORK_APART, "no IPv4 network has all hosts in it", Vec::new()))
}
