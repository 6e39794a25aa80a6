//go:build linux

// Package testenv makes small networks inside one machine: network namespaces, veth pairs with several queues,
// bridges, addresses, routes and processes. The functional tests and `sluice demo` are built on it. It speaks netlink
// and system calls only; it runs no ip, ethtool or sysctl program.
//
// An [Env] owns everything that is made through it. [Env.Close] ends the processes, then removes the namespaces; veth
// pairs, bridges, addresses and routes vanish with them, because nothing is ever made in the namespace of the caller.
// In a test, [ForTest] does both:
//
//	env := testenv.ForTest(t)
//	a, err := env.Namespace("a")
//	b, err := env.Namespace("b")
//	err = env.Veth(testenv.End{Namespace: a, Name: "eth0"}, testenv.End{Namespace: b, Name: "eth0"}, 2)
//	err = a.AddAddr("eth0", netip.MustParsePrefix("10.0.0.1/24"))
//	web, err := a.Start(testenv.Cmd{Path: "nginx", Args: []string{"-c", conf}})
//
// [NewTopology] makes the network that most tests want: a client, a router, nodes and backends.
//
// # What is left after a crash
//
// A namespace is a file below /run/netns, as iproute2 makes it, so that `ip netns exec` enters it. Its name carries the
// process id and the start time of its maker. A maker that is killed takes its processes along (they are started with
// PDEATHSIG) and leaves the namespaces; the next [New], in any process, finds the names whose maker is dead and removes
// them with whatever still runs inside. No state file is needed.
//
// # Threads
//
// A namespace belongs to a thread, not to a process. [Namespace.Do] locks the caller's goroutine to its thread for as
// long as the function runs, and a socket keeps the namespace in which it was made, so descriptors opened inside may be
// used anywhere afterwards. Goroutines started inside the function run outside of the namespace.
//
// Each namespace that has processes owns one more thread, which starts them: PDEATHSIG fires when the thread that
// forked ends, and Go ends threads as it likes. That thread has a mount namespace of its own with the /sys of its
// network namespace, as `ip netns exec` gives; so a process started with [Namespace.Start] sees its own interfaces
// in /sys/class/net, while code inside Do sees those of the test, and should ask netlink or ethtool instead.
//
// All methods may be called from any goroutine. Calls that change the network of one namespace at the same time are
// safe for the memory of this package, but their order is the caller's business.
package testenv
