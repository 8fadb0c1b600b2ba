// What the internet's web servers answer. Knows nothing of the mesh: it tells what it sees of a request, or does what faults/HOST (JSON) asks for.
import fs from 'fs';

// A miss that throws would cost a millisecond, which is most of a request.
function exists(path) {
    return fs.statSync(path, {throwIfNoEntry: false}) !== undefined;
}

// The file name (less .crt) of the certificate for the name a client asks for: its own, its zone's ('*.ZONE' lies in '_.ZONE'), or that of nobody.invalid.
function certificate(r) {
    const name = (r.variables.ssl_server_name || '').toLowerCase(), certs = r.variables.far_dir + '/certs/';
    if (!/^[a-z0-9.-]+$/.test(name)) {
        return 'nobody.invalid';
    }
    if (exists(certs + name + '.crt')) {
        return name;
    }
    const zone = '_' + name.slice(name.indexOf('.'));
    return exists(certs + zone + '.crt') ? zone : 'nobody.invalid';
}

function seen(r) {
    const v = r.variables;
    return {
        host: v.host, scheme: v.scheme, client: v.remote_addr, sni: v.ssl_server_name || '', port: v.server_port, address: v.server_addr,
        certificate: v.ssl_client_s_dn || '',
    };
}

function say(r, fault) {
    if (fault.redirect && r.variables.scheme === 'http' && r.uri.startsWith(fault.redirect)) {
        r.return(301, 'https://' + r.variables.host + r.variables.request_uri);
        return;
    }
    if (fault.reset) {
        r.return(444);
        return;
    }
    const body = seen(r);
    if (r.uri === '/headers') {
        body.decorator = r.headersIn['x-envoy-decorator-operation'] || '';
        body.headers = {};
        r.rawHeadersIn.forEach(h => {
            body.headers[h[0]] = h[1];
        });
    }
    r.headersOut['Content-Type'] = 'application/json';
    r.return(fault.status || 200, JSON.stringify(body) + '\n');
}

function answer(r) {
    const host = r.variables.host, file = r.variables.far_dir + '/faults/' + host;
    const fault = /^[a-z0-9.-]+$/.test(host) && exists(file) ? JSON.parse(fs.readFileSync(file, 'utf8')) : {};
    if (fault.delay) {
        setTimeout(say, fault.delay * 1000, r, fault);
    } else {
        say(r, fault);
    }
}

export default {answer, certificate};
