// Package sim proves what Sluice promises its connections, by simulation: it counts which flows reach another backend than
// the one that accepted them, while nodes and backends come, go, drain, change their weight and are attacked. Command
// sluice sim runs it.
//
// # What is real
//
// The scheme "sluice" is the product's own code: for each node a [forwarder.Engine] with its flow table and a
// [forwarder.Worker], which receives real frames from a memory NIC (package xsk) and sends them to the backend whose MAC is
// their destination then. The engine's clock is the simulator's, and so is the time at which its table is swept. Balance and
// schedulers are measured on package maglev, the table's behaviour under load on package conntrack.
//
// # What is modelled
//
// Flows, routers and events. A flow has a 5-tuple, opens with a SYN, confirms with an ACK, then sends data. A router sends a
// flow to a node by a hash of the 5-tuple: [resilient] moves only the flows of a node that went and brings them back when it
// returns, [modulo] moves flows of all nodes. Packets that are sent between two events come in order, and none is lost.
//
// Beside Sluice, three other schemes get the same packets and the same events (schemes.go): Maglev without a flow table,
// Maglev with a table on each node as Katran has it, and hash mod N. They are models, and every simplification is in their
// favour: no eviction, no limit on new flows, one table for all cores of a node. They use the lookup table and the flow hash of
// Sluice, so that a flow that two schemes give to different backends differs for the scheme alone.
//
// # What is counted
//
// A flow is broken when one of its packets reaches another backend than its SYN did, or none, or when its backend dies; in
// this last case it is unavoidable too: nobody could have kept it. A flow counts once.
//
// Everything is a function of the number of flows and the seed, but for how many packets an attack gets sent: that runs at the
// speed of the machine. A run takes some 900 bytes a flow. [Run] may be called from any goroutine; it uses two more.
package sim
