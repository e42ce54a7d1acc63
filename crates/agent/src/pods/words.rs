//! What a refusal says, and under which CNI error code.

use super::Pods;
use crate::wiring::{PodKernel, WiringError};
use weft_cni::spec::{Failure, code};
use weft_ipam::ledger::{COOLING, LedgerError, Stats};
use weft_model::{UserError, codes};

impl<K: PodKernel> Pods<K> {
    pub(super) fn no_block(&self) -> UserError {
        UserError::new(
            codes::NO_BLOCK,
            format!("node {} has no block of pod addresses yet", self.node),
            "kubectl get podpools,nodenetworks",
        )
    }

    pub(super) fn full(&self, stats: &Stats) -> UserError {
        UserError::new(
            codes::NODE_FULL,
            format!(
                "node {} has no free pod address: of {} in {} block(s), {} are in use and {} cool down for at most {} s",
                self.node,
                stats.capacity(),
                stats.serving().count(),
                stats.used(),
                stats.cooling(),
                COOLING.as_secs(),
            ),
            "kubectl get podpools,nodenetworks",
        )
    }

    pub(super) fn ledger_failure(&self, error: LedgerError) -> Failure {
        match error {
            LedgerError::NoBlock => Failure::new(code::TRY_AGAIN, &self.no_block()),
            LedgerError::Full { .. } => {
                let error = self
                    .ledger
                    .stats()
                    .map_or_else(|_| UserError::from(error), |stats| self.full(&stats));
                Failure::new(code::TRY_AGAIN, &error)
            }
            LedgerError::Exists { .. } => Failure::new(code::ENVIRONMENT, &error.into()),
            _ => Failure::new(code::IO, &error.into()),
        }
    }

    pub(super) fn wiring_failure(&self, error: &WiringError) -> Failure {
        let (cni, code, next) = match error {
            WiringError::InterfaceExists { .. } => (
                code::ENVIRONMENT,
                codes::INTERFACE_EXISTS,
                "send DEL for the sandbox, then ADD again",
            ),
            WiringError::HostNameTaken { .. } => (
                code::TRY_AGAIN,
                codes::INTERFACE_CONFLICT,
                "the runtime may try again with another sandbox",
            ),
            WiringError::Kernel(_) => (code::TRY_AGAIN, codes::NETLINK, "see the agent's log"),
        };
        Failure::new(
            cni,
            &UserError::new(code, format!("on {}: {error}", self.node), next),
        )
    }
}
