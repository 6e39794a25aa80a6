-- What the scripts for Pktgen-DPDK have in common; they load this file. Settings come from the environment:
--
--   VIP=192.0.2.10 MAC=02:00:00:00:00:01 pktgen -l 0-4 -n 4 -- -P -m "[1:2].0,[3:4].1" -f bench/nic/dpdk-pktgen/flows.lua
--
-- Port 0 sends, port 1 receives what the balancer forwards: TX and RX say otherwise.

local M = {}

local function number(name, default, least, most)
	local text = os.getenv(name) or tostring(default)
	local n = math.tointeger(tonumber(text))
	if not n or n < least or n > most then
		error(string.format('%s: found "%s", expected a number from %d to %d', name, text, least, most), 0)
	end
	return n
end

local function required(name, pattern, what)
	local text = os.getenv(name)
	if not text or not text:match(pattern) then
		error(string.format('%s: found "%s", expected %s', name, text or "", what), 0)
	end
	return text
end

local function ipv4(name, text)
	local n, parts = 0, 0
	for part in text:gmatch("[^.]+") do
		local byte = math.tointeger(tonumber(part))
		if not byte or byte < 0 or byte > 255 then
			parts = 4 -- one too many with this one
		end
		n, parts = n * 256 + (byte or 0), parts + 1
	end
	if parts ~= 4 then
		error(string.format('%s: found "%s", expected an IPv4 address', name, text), 0)
	end
	return n
end

local function dotted(n)
	return string.format("%d.%d.%d.%d", n >> 24 & 255, n >> 16 & 255, n >> 8 & 255, n & 255)
end

M.mac = required("MAC", "^%x%x:%x%x:%x%x:%x%x:%x%x:%x%x$", "the MAC of the balancer's interface")
if tonumber(M.mac:sub(2, 2), 16) % 2 == 1 then
	error("MAC: " .. M.mac .. " is a group address: the flood would reach every host of the link", 0)
end
M.vip = required("VIP", "^%d+%.%d+%.%d+%.%d+$", "an IPv4 address")
ipv4("VIP", M.vip)
M.port = number("PORT", 80, 1, 65535)
M.tx, M.rx = tostring(number("TX", 0, 0, 63)), tostring(number("RX", 1, 0, 63))
M.seconds = number("SECONDS", 10, 1, 3600)
M.rate = number("RATE", 100, 1, 100) -- percent of line rate
M.source = os.getenv("SOURCE") or "198.18.0.1"
M.sources = number("SOURCES", 256, 1, 2 ^ 24)
M.flows = number("FLOWS", 1024, 1, 10 ^ 8)
M.ports = math.ceil(M.flows / M.sources)
if M.ports > 60000 then
	error(string.format("%d flows of %d sources are more than 60000 ports for each: raise SOURCES", M.flows, M.sources), 0)
end

-- range sets one field of the range: from first to last in steps.
local function range(field, first, last, step)
	for what, value in pairs({ start = first, min = first, max = last, inc = step }) do
		pktgen.range[field](M.tx, what, value)
	end
end

-- flood has the sender walk through all flows with UDP packets of this size, checksum included. Pktgen raises all fields at once, so
-- the numbers of sources and of ports must have no common divisor, else it meets only some of the flows: one more port does.
function M.flood(size)
	local function gcd(a, b)
		return b == 0 and a or gcd(b, a % b)
	end
	while gcd(M.sources, M.ports) > 1 do
		M.ports = M.ports + 1
	end
	M.flows = M.sources * M.ports
	local first = ipv4("SOURCE", M.source)
	range("dst_mac", M.mac, M.mac, "00:00:00:00:00:00")
	range("src_ip", dotted(first), dotted(first + M.sources - 1), "0.0.0.1")
	range("dst_ip", M.vip, M.vip, "0.0.0.0")
	range("src_port", 1024, 1024 + M.ports - 1, 1)
	range("dst_port", M.port, M.port, 0)
	range("pkt_size", size, size, 0)
	pktgen.range.ip_proto(M.tx, "udp")
	pktgen.set_range(M.tx, "on")
end

-- run sends for some seconds at a rate in percent, and returns what was sent and what came.
function M.run(rate, seconds)
	pktgen.clr()
	pktgen.set(M.tx, "count", 0)
	pktgen.set(M.tx, "rate", rate)
	pktgen.start(M.tx)
	pktgen.delay(seconds * 1000)
	pktgen.stop(M.tx)
	pktgen.delay(1000) -- what is on its way
	local sent = pktgen.portStats(M.tx, "port")[tonumber(M.tx)].opackets
	local received = pktgen.portStats(M.rx, "port")[tonumber(M.rx)].ipackets
	print(string.format("rate %g %%: sent %d, received %d in %d s: %.3f Mpps, lost %.4f %%",
		rate, sent, received, seconds, received / seconds / 1e6, sent > 0 and (sent - received) / sent * 100 or 0))
	return sent, received
end

return M
