// Copyright (c) the oidcexchange authors
// SPDX-License-Identifier: MPL-2.0

// An Unleash on the PostgreSQL of PGPORT, with one admin token.
// Environment: PGPORT, PORT, and ADMIN, the admin token.
const { start } = require("unleash-server");

const { PGPORT, PORT, ADMIN } = process.env;
start({
  db: { host: "127.0.0.1", port: Number(PGPORT), user: "unleash", database: "postgres", ssl: false },
  server: { host: "127.0.0.1", port: Number(PORT) },
  versionCheck: { enable: false },
  telemetry: false,
  authentication: { initApiTokens: [{ environment: "*", project: "*", secret: ADMIN, type: "admin", tokenName: "admin" }] },
}).catch((e) => {
  console.error(e);
  process.exit(1);
});
