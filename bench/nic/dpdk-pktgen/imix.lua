-- The simple Internet mix to a VIP, for SECONDS at RATE percent: of 12 packets seven of 64 bytes, four of 594, one of 1518. Pktgen takes
-- them from a sequence of 16 packets at most, so these are 12 flows: for more use flows.lua with one SIZE after the other.
local nic = dofile((debug.getinfo(1, "S").source:match("^@(.*/)") or "./") .. "common.lua")

local sizes = { 64, 594, 64, 64, 594, 64, 1518, 64, 594, 64, 64, 594 }
for i, size in ipairs(sizes) do
	pktgen.seqTable(i - 1, nic.tx, {
		eth_dst_addr = nic.mac, eth_src_addr = os.getenv("SOURCE_MAC") or "02:00:00:00:ff:01",
		ip_dst_addr = nic.vip, ip_src_addr = nic.source .. "/32",
		sport = 1023 + i, dport = nic.port, ethType = "ipv4", ipProto = "udp", vlanid = 1, pktSize = size,
	})
end
pktgen.set_range(nic.tx, "off")
pktgen.set(nic.tx, "seq_cnt", #sizes)
nic.run(nic.rate, nic.seconds)
