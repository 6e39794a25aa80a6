// Package nic is what is needed to measure on real network cards: scripts for generators of other people, in folders, and the way
// of their results into a report.
//
//   - pktgen: POSIX sh, for the kernel's pktgen. UDP only.
//   - trex: profiles for TRex. UDP, SYNs, segments of many flows; whole TCP connections.
//   - dpdk-pktgen: Lua, for Pktgen-DPDK. UDP.
//
// docs/benchmarks-nic.md says what to run and how. The scripts are written for other machines than the one under test, so they need
// nothing else of this repository. The tests check them as far as that goes without cards: by linters, and by running them with
// stand-ins for TRex's and Pktgen-DPDK's API (testdata). With a real pktgen they run in an emulated machine, where
// testenv/guest/zerocopy looks at each packet.
package nic
