// A peer: node peer.js CONFIG ID, with a configuration file in JSON as `zmqraft run` takes it.
'use strict';

const fs = require('fs');
const path = require('path');
const raft = require('zmq-raft');
const {tell, serve} = require('./lines');

const [, , file, id] = process.argv;
const section = JSON.parse(fs.readFileSync(file, 'utf8')).raft;
const {pub} = section.peers.find((peer) => peer.id === id);

const fail = (error) => {
  tell({event: 'failed', message: error.stack});
  process.exitCode = 1;
  process.exit();
};

raft.server.builder.build({
  ...section,
  id,
  broadcast: {...section.broadcast, url: pub},
  webmonitor: {enable: false},
  listeners: {
    error: fail,
    state: (state, term) => tell({event: 'state', state: state.description, term}),
    config: null,
    close: null,
  },
}).then((peer) => {
  serve({
    close: () => peer.close(),
    info: () => ({leads: peer.isLeader, term: peer.currentTerm}),
  });
  tell({event: 'ready', url: peer.url});
}, fail);
