-- 64-byte UDP packets of many flows to a VIP, for SECONDS at RATE percent: FLOWS, SOURCES, SIZE.
local nic = dofile((debug.getinfo(1, "S").source:match("^@(.*/)") or "./") .. "common.lua")

nic.flood(tonumber(os.getenv("SIZE") or 64))
print(string.format("%d flows: %d sources with %d ports", nic.flows, nic.sources, nic.ports))
nic.run(nic.rate, nic.seconds)
